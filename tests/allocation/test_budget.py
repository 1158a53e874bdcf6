"""Budgets as people write them."""

import pytest

from bitquilt.allocation.budget import Budget, human, parse_size
from bitquilt.errors import UserError
from bitquilt.targets.layout import Layout


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("600MB", 600_000_000),
        ("600 mb", 600_000_000),
        ("1.5GiB", 3 << 29),
        ("1G", 10**9),
        ("1Gi", 1 << 30),
        ("1TB", 10**12),
        ("1.5TiB", 3 << 39),
        ("12 KiB", 12 << 10),
        ("734003200", 734_003_200),
        ("10b", 10),
    ],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.0GB", "1e9", "1,5GB", "1PB", "600 MBs", "nan", "inf"]
)
def test_no_sizes(text):
    with pytest.raises(UserError, match="is not a size; write it like 600MB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("600", "600MB"), ("1.5", "1.5GB"), ("9999", "9999MB")]
)
def test_a_number_without_a_unit_that_no_model_is_so_small_as(text, meant):
    words = f"{text}'? has no unit, so it means {text} bytes, .* did you mean {meant}\\?"
    with pytest.raises(UserError, match=words):
        parse_size(text)


def test_bits_are_of_the_tensors_and_sizes_of_everything_on_disk():
    breakdown = {"tokenizer": 100, "metadata": 20, "norms": 12, "embedding": 300, "codes": 200}
    breakdown |= {"scales": 50, "padding": 8}
    layout = Layout(690, {"a": 552}, 138, breakdown, weights=1000)
    assert layout.bits == (12 + 300 + 200 + 50) * 8 / 1000
    assert layout.bits_on_disk == 690 * 8 / 1000
    assert Budget(bits=4.5).nbytes(1000) == 562  # never more: 562.5 is rounded down
    assert Budget(bits=4.5).capacity(layout) == 562 - 12
    assert Budget(size=600).nbytes(1000) == 600
    assert Budget(size=600).capacity(layout) == 600 - 138


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (999, "999 B"),
        (1000, "1.00 kB"),
        (405_952, "405.95 kB"),
        (1_500_000_000, "1.50 GB"),
        (2e12, "2.00 TB"),
    ],
)
def test_sizes_for_people(nbytes, words):
    assert human(nbytes) == words
