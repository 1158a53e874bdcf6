"""Budgets as people write them."""

import pytest

from bitquilt.allocation.budget import Budget, human, parse_size
from bitquilt.errors import UserError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("600MB", 600_000_000),
        ("600 mb", 600_000_000),
        ("1.5GiB", 3 << 29),
        ("1G", 10**9),
        ("1Gi", 1 << 30),
        ("12 KiB", 12 << 10),
        ("734003200", 734_003_200),
        ("10b", 10),
    ],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.0GB", "1e9", "1,5GB", "1TB", "600 MBs", "nan", "inf"]
)
def test_no_sizes(text):
    with pytest.raises(UserError, match="is not a size; write it like 600MB"):
        parse_size(text)


def test_a_budget_is_a_limit_for_the_file():
    assert Budget(bits=4.5).nbytes(1000) == 562  # never more: 562.5 is rounded down
    assert Budget(size=600).nbytes(1000) == 600


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(999, "999 B"), (1000, "1.00 kB"), (405_952, "405.95 kB"), (1_500_000_000, "1.50 GB")],
)
def test_sizes_for_people(nbytes, words):
    assert human(nbytes) == words
