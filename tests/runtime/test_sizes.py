"""Sizes as people write them."""

from __future__ import annotations

import pytest

from bitquilt.errors import UserError
from bitquilt.runtime.sizes import human, parse_size


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
    with pytest.raises(UserError, match=r"^size is .*, which is not a size; write it like 600MB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("600", "600MB"), ("1.5", "1.5GB"), ("9999", "9999MB")]
)
def test_a_number_without_a_unit_that_no_model_is_so_small_as(text, meant):
    words = f"{text}'? has no unit, so it means {text} bytes, .* did you mean {meant}\\?"
    with pytest.raises(UserError, match=words):
        parse_size(text)


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
