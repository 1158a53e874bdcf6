"""Held-out text like the calibration text and unlike it, and the text that types are chosen on."""

from __future__ import annotations

import pytest
import torch

from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import held_out_windows, mixed_windows, races_and_selection
from bitquilt.errors import UserError

LENGTH = 10
DOMAINS = {"prose": 1, "code": 2, "law": 3, "recipes": 4}
"""Domain → the only token of its documents."""


def documents(*domains: str, number: int = 8, tokens: int = 30) -> list[Document]:
    """So many documents of each domain, numbered in their source."""
    return [
        Document(domain, f"{domain}{n}", "x" * tokens, None)
        for domain in domains
        for n in range(number)
    ]


def encode(document: Document) -> list[int]:
    return [DOMAINS[document.domain]] * len(document.text or "")


def test_each_kind_has_as_many_windows_those_of_unlike_text_first():
    held_out = documents("prose", "code", "law", "recipes")
    text, lacking = held_out_windows(held_out, documents("prose", "code"), encode, 6, LENGTH)
    assert (text.tokens.shape, text.unlike, lacking) == ((12, LENGTH), 6, "")
    assert set(text.tokens[:6].unique().tolist()) == {3, 4}
    assert set(text.tokens[6:].unique().tolist()) == {1, 2}
    assert text.owners.shape == text.tokens.shape
    for own in (text.owners[:6], text.owners[6:]):
        assert len(own.unique()) >= 6  # as many documents as there are windows


@pytest.mark.parametrize(
    ("held_out", "unlike", "said"),
    [
        (documents("prose"), 0, "text unlike the calibration text: there is none of it"),
        (documents("law"), 6, "text like the calibration text: there is none of it"),
        (
            documents("prose") + documents("law", number=1),
            0,
            "text unlike the calibration text: there is too little of it",
        ),
    ],
)
def test_a_kind_without_enough_text_is_left_out_and_said(held_out, unlike, said):
    text, lacking = held_out_windows(held_out, documents("prose"), encode, 6, LENGTH)
    assert len(text.tokens) == 6
    assert text.unlike == unlike
    assert lacking.startswith("files are not measured on ")
    assert said in lacking


@pytest.mark.parametrize("domain", ["prose", "law"])
def test_too_little_held_out_text_of_either_kind_is_refused(domain):
    with pytest.raises(UserError, match=r"30 tokens, enough for 3 windows .* give more text"):
        held_out_windows(documents(domain, number=1), documents("prose"), encode, 6, LENGTH)


def test_races_and_selection_have_documents_of_all_domains_and_none_together():
    races, selection = races_and_selection(documents("law", "recipes"))
    sources = [{document.source for document in part} for part in (races, selection)]
    assert sources[0].isdisjoint(sources[1])
    assert [len(own) for own in sources] == [12, 4]
    for part in (races, selection):
        assert {document.domain for document in part} == {"law", "recipes"}


def test_half_of_the_windows_are_a_users_mixed_with_the_others():
    found = mixed_windows(documents("code"), documents("law"), encode, 16, LENGTH)
    assert found.shape == (16, LENGTH)
    own = (found == 2).all(1)
    assert own.sum() == 8
    assert 0 < own[:8].sum() < 8
    assert torch.equal(found, mixed_windows(documents("code"), documents("law"), encode, 16, 10))


@pytest.mark.parametrize("users", [[], documents("code", number=1, tokens=10)])
def test_without_enough_of_a_users_text_all_is_bundled(users):
    assert (mixed_windows(users, documents("law"), encode, 16, LENGTH) == 3).all()
