"""Windows for one model: enough text, spread over the documents and their domains."""

from __future__ import annotations

from collections import Counter

import torch

from bitquilt.calibration.corpus import Document, bundled
from bitquilt.calibration.text import search_documents, token_windows, tuning_windows


def text(content: str, domain: str = "text") -> Document:
    return Document(domain, "test", content, None)


def numbers(document: Document) -> list[int]:
    return [int(word) for word in (document.text or "").split()]


def test_a_long_body_is_not_passed_over_for_its_title():
    body = text(" ".join(str(10_000 + i) for i in range(5_000)))
    drawn = token_windows([text("1 2 3"), body], numbers, count=20, length=10)
    assert drawn.shape == (20, 10)
    assert (drawn >= 10_000).any(dim=1).all()


def test_few_documents_are_read_and_every_domain_in_proportion():
    """Two domains of 3:1, whose every second document is nearly empty."""
    read: Counter[str] = Counter()

    def encode(document: Document) -> list[int]:
        read[document.domain] += len(document.text or "")
        return numbers(document)

    full = " ".join(["123"] * 100)
    prose, code = (
        [text("1" if i % 2 == 0 else full, d) for i in range(n)]
        for d, n in (("prose", 1200), ("code", 400))
    )
    first = token_windows([*prose, *code], encode, count=40, length=10)
    everything = 800 * len(full)
    assert 40 * 10 * 16 <= sum(read.values()) < everything / 8
    assert 0.7 < read["prose"] / sum(read.values()) < 0.8
    assert torch.equal(first, token_windows([*prose, *code], encode, count=40, length=10))


def test_types_are_chosen_on_the_bundled_search_text():
    assert search_documents() == bundled("search")


OWN, OTHER = text(" ".join(["1"] * 400), "prose"), " ".join(["2"] * 200)


def test_tuning_stops_by_text_of_other_domains():
    others = [text(OTHER, f"domain {n % 2}") for n in range(6)]
    drawn = tuning_windows([OWN], others, numbers, apart=2, count=6, length=16)
    assert drawn.shape == (6, 16)
    assert (drawn[:2] == 2).any(dim=1).all()
    assert not (drawn[2:] == 2).any()


def test_where_there_is_no_other_text_calibration_text_ends_the_tuning():
    drawn = tuning_windows([OWN], [], numbers, apart=2, count=6, length=16)
    assert drawn.shape == (6, 16)
    assert not (drawn == 2).any()
