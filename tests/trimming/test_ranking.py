"""Which tokens come first, and which bundled text belongs to a language."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch

from bitquilt.calibration.corpus import Document, bundled
from bitquilt.trimming import ranking
from bitquilt.trimming.bpe import BpeFile
from bitquilt.trimming.config import LANGUAGES, TrimConfig
from bitquilt.trimming.ranking import (
    count_tokens,
    counted_shares,
    language_of,
    letters_of,
    merge_shares,
    ranked_tokens,
)
from tests.factories import tiny_checkpoint


def test_expected_tokens_weigh_as_much_as_counted_ones(tmp_path):
    tokenizer = BpeFile.read(tiny_checkpoint(tmp_path, layers=1), "tiny")
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    counted = {7: 0.6, 8: 0.3, 9: 0.1}
    assert ranked_tokens(tokenizer, counted) == [names[7], names[8], names[9]]
    expected = torch.zeros(520)
    # no token has id 515; without letters the order of the merges says nothing: roots of shares
    expected[torch.tensor([9, 30, 515])] = torch.tensor([0.09, 0.9, 0.01])
    ranked = ranked_tokens(tokenizer, counted, expected)
    # 30: 0.95 of 1.35; 7: 0.6; 9: 0.1 + 0.3 of 1.35; 8: 0.3
    assert ranked[:4] == [names[30], names[7], names[9], names[8]]
    assert len(ranked) == 512
    own = ranked_tokens(tokenizer, counted, expected, first={8, 9})
    assert own[:4] == [names[9], names[8], names[30], names[7]]


def test_the_order_of_the_merges_counts_for_words_in_the_languages_letters(tmp_path):
    tokenizer = BpeFile.read(tiny_checkpoint(tmp_path, layers=1), "tiny")
    shares = merge_shares(tokenizer, set("abcdefghijklmnopqrstuvwxyz"))
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    told = [names[index] for index in shares]
    words = [token for token in dict.fromkeys(map("".join, tokenizer.merges)) if _is_word(token)]
    assert told == words
    assert len(told) > 50
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def _is_word(token):
    return re.fullmatch("\u0120?[A-Za-z]+", token) is not None


def test_letters_are_those_of_the_language():
    german = Document("docs-de", "s", "Straße über Öl und Maß " * 2000 + "ñ Ω", None)
    letters = letters_of([german])
    assert set("straßeüberölundm") - set("ß") <= {*letters}
    assert "ñ" not in letters
    assert "ω" not in letters
    chinese = letters_of([Document("docs-zh", "s", "汉字 and 文字" * 50, None)])
    assert "语" in chinese  # a script of thousands of letters counts as a whole
    assert "語" not in letters


def test_code_beside_text_in_a_language_weighs_less():
    own, beside = Counter({1: 3, 2: 1}), Counter({2: 50, 3: 50})
    assert counted_shares(own, beside) == pytest.approx({1: 0.75, 2: 0.25 + 0.15, 3: 0.15})
    assert counted_shares(own, Counter()) == {1: 0.75, 2: 0.25}
    assert counted_shares(Counter(), beside) == {2: 0.5, 3: 0.5}


def test_counting_reads_every_document(tmp_path):
    documents = [Document("a", "s", text, None) for text in ("abc", "ca")]
    told = []
    counts = count_tokens(documents, lambda one: [*one.text.encode()], told.append)
    assert counts == Counter({97: 2, 98: 1, 99: 2})
    assert told == [3, 2]


def test_languages_are_counted_in_the_bundled_text(tmp_path, monkeypatch):
    texts = {"docs-en": "a", "docs-de": "b", "code-go": "c", "maths": "d"}
    documents = [Document(domain, "s", text, None) for domain, text in texts.items()]
    monkeypatch.setattr(ranking, "bundled", lambda split: documents if split == "search" else [])
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": "e", "domain": "letters"}))
    kept = ranking.text_to_keep(TrimConfig(output="small", languages=["en"], keep=[own]))
    assert [document.domain for document in kept.given] == ["letters"]
    assert [document.domain for document in kept.own] == ["letters", "docs-en"]
    assert [document.domain for document in kept.beside] == ["code-go", "maths"]
    assert ranking.text_to_keep(TrimConfig(output="small", keep=[own])).beside == ()


def test_every_language_that_is_offered_has_bundled_text():
    both = [*bundled("calibration"), *bundled("search")]
    assert {language_of(document) for document in both} - {""} == set(LANGUAGES)
