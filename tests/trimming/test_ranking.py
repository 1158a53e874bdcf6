"""Which tokens come first, and which bundled text belongs to a language."""

from __future__ import annotations

import json
from collections import Counter

import torch

from bitquilt.calibration.corpus import Document, bundled
from bitquilt.trimming import ranking
from bitquilt.trimming.bpe import BpeFile
from bitquilt.trimming.config import LANGUAGES, TrimConfig
from bitquilt.trimming.ranking import count_tokens, language_of, prose, ranked_tokens
from tests.factories import tiny_checkpoint


def test_expected_tokens_weigh_as_much_as_counted_ones(tmp_path):
    tokenizer = BpeFile.read(tiny_checkpoint(tmp_path, layers=1), "tiny")
    names = {index: token for token, index in tokenizer.vocabulary.items()}
    counts = Counter({7: 6, 8: 3, 9: 1})
    assert ranked_tokens(tokenizer, counts) == [names[7], names[8], names[9]]
    expected = torch.zeros(520)
    expected[torch.tensor([9, 30, 515])] = torch.tensor([0.25, 0.7, 0.05])  # no token has id 515
    ranked = ranked_tokens(tokenizer, counts, expected)
    assert ranked[:4] == [names[30], names[7], names[9], names[8]]
    assert len(ranked) == 512


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
    assert [document.domain for document in kept] == ["letters", "docs-en", "code-go", "maths"]
    assert [document.domain for document in prose(kept)] == ["docs-en"]
    assert prose(kept[2:]) == kept[2:]


def test_every_language_that_is_offered_has_bundled_text():
    both = [*bundled("calibration"), *bundled("search")]
    assert {language_of(document) for document in both} - {""} == set(LANGUAGES)
