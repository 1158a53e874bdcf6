"""Windows know their documents; what cannot be predicted is not scored."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.calibration.corpus import Document
from bitquilt.errors import UserError
from bitquilt.evaluation.text import held_out
from bitquilt.runtime.progress import Silent
from tests.progress import Recorded

LENGTH = 40


def encode(document: Document) -> list[int]:
    """As many tokens as the text has characters, all of them the document's own number."""
    return [int(document.source)] * len(document.text or "")


def corpus(*lengths: int, domain: str = "prose") -> list[Document]:
    return [Document(domain, str(n), "x" * length, None) for n, length in enumerate(lengths)]


def test_long_documents_give_windows_in_turn():
    text = held_out(corpus(400, 400, 90), encode, 6 * LENGTH, LENGTH, Silent())
    owners = sorted(text.tokens[:, 0].tolist())
    assert owners == [0, 0, 1, 1, 2, 2]
    assert text.scored.all()
    np.testing.assert_array_equal(text.document, text.tokens[:, 1:])


def test_short_documents_share_a_window_and_are_not_predicted_from_one_another():
    text = held_out(corpus(35, 35, 35, 35), encode, 2 * LENGTH, LENGTH, Silent())
    tokens = text.tokens.numpy()
    np.testing.assert_array_equal(text.scored, tokens[:, 1:] == tokens[:, :-1])
    assert not text.scored.all()
    assert len(text.documents) == text.scored.sum() == len(text.domains)


def test_domains_get_the_same_share():
    documents = corpus(4000) + corpus(400, 400, domain="code")
    text = held_out(documents, encode, 10 * LENGTH, LENGTH, Silent())
    assert sorted(text.domain) == ["code"] * 5 + ["prose"] * 5


def test_text_like_the_calibration_text_and_unlike_it_get_the_same_share():
    documents = [one for name in ("code", "prose", "law") for one in corpus(4000, domain=name)]
    tokens = 8 * LENGTH
    text = held_out(documents, encode, tokens, LENGTH, Silent(), {"code", "prose"})
    assert sorted(text.domain) == ["code"] * 2 + ["law"] * 4 + ["prose"] * 2


def test_fewer_windows_than_domains_are_of_every_so_many_of_them():
    names = [f"domain-{letter}" for letter in "abcdefghi"]
    documents = [one for name in names for one in corpus(400, domain=name)]
    text = held_out(documents, encode, 6 * LENGTH, LENGTH, Silent(), names[:6])
    assert sorted(text.domain) == [f"domain-{letter}" for letter in "bdfghi"]


def test_a_domain_that_is_too_short_is_said():
    said = []
    documents = corpus(400) + corpus(39, domain="code")
    text = held_out(documents, encode, 4 * LENGTH, LENGTH, Recorded(lines=said))
    assert set(text.domain) == {"prose"}
    assert said == ["The text has fewer than 40 tokens of code, which is left out"]


def test_the_first_windows_are_the_text_itself():
    text = held_out(corpus(400, 400), encode, 8 * LENGTH, LENGTH, Silent())
    part = text.first(3, 20)
    assert part.tokens.shape == (3, 20)
    assert part.scored.shape == part.document.shape == (3, 19)
    assert part.fingerprint != text.fingerprint == text.first(8, LENGTH).fingerprint


def test_bytes_are_those_of_the_scored_tokens():
    text = held_out(corpus(35, 35, 35), encode, LENGTH, LENGTH, Silent())
    assert text.nbytes(lambda ids: "é" * len(ids)).tolist() == (2 * text.scored.sum(1)).tolist()


def test_text_without_a_document_of_a_window_is_refused():
    said: list[str] = []
    with pytest.raises(UserError, match=r"fewer than 40 tokens; give more text with text"):
        held_out(corpus(10, 20), encode, 400, LENGTH, Recorded(lines=said))
    several = corpus(10, 20) + corpus(39, domain="code")
    with pytest.raises(UserError, match=r"fewer than 40 tokens of each domain; give more text"):
        held_out(several, encode, 400, LENGTH, Recorded(lines=said))
    assert said == []  # that each was left out is no news beside it
