"""Bundled and user text, overlap, windows, fingerprints."""

import gzip
import json
import lzma
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bitquilt.calibration import corpus
from bitquilt.calibration.corpus import Document
from bitquilt.errors import UserError

LONG = "This sentence is comfortably longer than eighty characters, so it counts as a long line."


def text(content: str, domain: str = "prose", source: str = "s") -> Document:
    return Document(domain, source, content, None)


def words(document: Document) -> list[int]:
    return [int(word) for passage in document.passages for word in passage.split()]


SPLITS = ("calibration", "search", "held-out")


@cache
def bundled(split: str) -> list[Document]:
    return corpus.bundled(split)


def characters(split: str) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for document in bundled(split):
        assert (document.text is None) != (document.messages is None)
        sizes[document.domain] += sum(map(len, document.passages))
    return sizes


def test_bundled_calibration_text_is_spread_over_domains():
    sizes = characters("calibration")
    assert len(sizes) >= 25
    total = sum(sizes.values())
    assert total > 8_000_000
    assert min(sizes.values()) > 0.015 * total
    assert max(sizes.values()) < 0.15 * total
    assert sum(domain.startswith("code-") for domain in sizes) >= 11
    assert sum(domain.startswith("docs-") for domain in sizes) >= 9


def test_bundled_search_text_is_of_domains_that_calibration_has_not():
    sizes = characters("search")
    assert sizes.keys().isdisjoint(characters("calibration"))
    assert len(sizes) >= 6
    assert sum(sizes.values()) > 600_000
    assert max(sizes.values()) < 0.25 * sum(sizes.values())


def test_bundled_held_out_text_is_like_calibration_text_and_unlike_it():
    held_out, home = characters("held-out"), characters("calibration")
    total, of_home = sum(held_out.values()), sum(home.values())
    like = sum(size for domain, size in held_out.items() if domain in home)
    assert 0.6 * total < like < 0.75 * total
    for domain, size in home.items():
        assert held_out[domain] / like == pytest.approx(size / of_home, rel=0.35), domain
    unlike = held_out.keys() - home.keys()
    assert len(unlike) >= 8
    assert unlike.isdisjoint(characters("search"))
    for domain in unlike:
        assert held_out[domain] >= 60_000
        assert sum(document.domain == domain for document in bundled("held-out")) >= 8


@pytest.mark.parametrize(("split", "other"), combinations(SPLITS, 2))
def test_bundled_splits_share_no_long_passage(split, other):
    documents = bundled(split)
    kept, dropped = corpus.without_overlap(documents, bundled(other))
    assert dropped == []
    assert kept == documents
    questions = [
        {d.passages for d in bundled(name) if d.messages is not None} for name in (split, other)
    ]
    assert questions[0].isdisjoint(questions[1])
    assert {d.source for d in documents}.isdisjoint(d.source for d in bundled(other))


def test_bundled_conversations_fit_every_chat_template():
    """Turns alternate and begin with the user's, after at most one system message."""
    for split in SPLITS:
        for document in bundled(split):
            if document.messages is not None:
                roles = [message["role"] for message in document.messages]
                roles = roles[1:] if roles[0] == "system" else roles
                assert roles == ["user", "assistant"] * (len(roles) // 2) != []
                assert all(document.passages)


def test_every_bundled_document_has_its_licence_listed():
    listed = {}
    for row in (corpus.DATA / "LICENCES.md").read_text().splitlines():
        if row.startswith("| `"):
            documents, _, copyright_, licence = (cell.strip() for cell in row.strip("|").split("|"))
            listed[documents.strip("`").removesuffix("/…")] = licence
            assert copyright_
    for split in SPLITS:
        with lzma.open(corpus.DATA / f"{split.replace('-', '_')}.jsonl.xz", "rt") as lines:
            for record in map(json.loads, lines):
                assert listed[record["source"].partition("/")[0]] == record["licence"], record[
                    "source"
                ]


def test_bundled_files_are_at_most_10_megabytes():
    assert sum(path.stat().st_size for path in corpus.DATA.iterdir()) < 10_000_000


def test_text_file_splits_at_two_blank_lines(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("one\n\nstill one\n\n\ntwo\n")
    assert [d.text for d in corpus.from_file(path)] == ["one\n\nstill one", "two"]


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_jsonl_with_text_and_messages(tmp_path, suffix, opener):
    path = tmp_path / f"mine.jsonl{suffix}"
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    lines = [{"text": "plain\u2028line", "domain": "prose"}, {"messages": messages}]
    with opener(path, "wt") as file:
        file.write("\n".join(map(json.dumps, lines)))
    first, second = corpus.from_file(path)
    assert (first.domain, first.text) == ("prose", "plain\u2028line")
    assert second.messages == tuple(messages)
    assert second.source == f"mine.jsonl{suffix}#2"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"x", "neither .txt nor .jsonl"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"ok\n\xff\xfe", "line 2: not UTF-8"),
        ("a.txt.gz", b"not gzip", "decompressed"),
        ("a.jsonl.xz", b"not xz", "decompressed"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text"',
            "line 2, letter 8: not JSON",
        ),
        ("a.jsonl", b'["text"]', "line 1: give either"),
        ("a.jsonl", b'{"text": 3}', "line 1: give either"),
        ("a.jsonl", b'{"messages": []}', "line 1: give either"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1: give either"),
        ("a.jsonl", b'{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "either"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        corpus.from_file(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n', "utf-8-sig")
    assert [document.text for document in corpus.from_file(path)] == ["a"]


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        corpus.from_file(Path("nowhere.txt"))


def test_overlap_ignores_case_spacing_and_short_lines():
    held_out = [text(f"shared\n{LONG}")]
    copied = text(f"new words\n   {LONG.upper()}", source="copied")
    fresh = text("shared\nother words", source="fresh")
    assert corpus.without_overlap([copied, fresh], held_out) == ([fresh], ["copied"])


def test_overlap_sees_wrapped_paragraphs_and_conversations():
    wrapped = "\n".join(LONG.split(" of ")).replace(", ", ",\n")
    chat = Document("maths", "chat", None, ({"role": "user", "content": LONG},))
    held_out = [text(f"before\n\n{LONG}\n\nafter")]
    rewrapped = text(f"x\n\n{wrapped}\n\ny", source="wrapped")
    assert corpus.without_overlap([rewrapped, chat], held_out)[1] == ["wrapped", "chat"]


def test_windows_keep_proportions_and_domains_apart():
    code = [text(" ".join(map(str, range(i, i + 50))), "code") for i in range(1000, 1600, 50)]
    prose = [text(" ".join(map(str, range(200))), "prose")]
    drawn, owners = corpus.windows([*prose, *code], words, count=40, length=10)
    assert drawn.shape == (40, 10)
    assert drawn.dtype == np.int64
    is_code = drawn >= 1000
    assert (is_code.all(axis=1) | ~is_code.any(axis=1)).all()
    assert is_code.all(axis=1).sum() == 30
    assert len({tuple(row) for row in drawn}) == 40
    # document 0 is the prose; the n-th of code has 50 numbers from 950 + 50 n on
    assert (owners == np.where(is_code, (drawn - 950) // 50, 0)).all()


def test_windows_that_judge_begin_in_as_many_documents_as_there_are():
    """One long document, many short ones: windows drawn plainly are nearly all of the long one."""
    documents = [text(" ".join(["0"] * 4000)), *(text(" ".join(["1"] * 100)) for _ in range(20))]
    for seed in range(5):
        plainly, apart = (
            corpus.windows(documents, words, 12, 100, seed, apart=wish)[1] for wish in (False, True)
        )
        assert len(np.unique(apart)) == 12 > len(np.unique(plainly))
    every = corpus.windows(documents, words, 60, 100, apart=True)[1]
    assert (np.bincount(every.ravel()) == [4000] + 20 * [100]).all()


def test_windows_depend_only_on_the_seed():
    documents = [text(" ".join(map(str, range(1000))))]
    draw = [corpus.windows(documents, words, 20, 10, seed)[0] for seed in (0, 0, 1)]
    assert (draw[0] == draw[1]).all()
    assert (draw[0] != draw[2]).any()


def test_windows_may_use_all_the_text_and_no_more():
    documents = [text("1 2 3 4 5 6 7", "a"), text("8 9 10 11", "b")]
    assert sorted(corpus.windows(documents, words, 5, 2)[0][:, 0]) == [1, 3, 5, 8, 10]
    with pytest.raises(
        UserError, match="11 tokens, enough for 5 windows of 2 tokens, but 6 windows are needed"
    ):
        corpus.windows(documents, words, 6, 2)


def test_fingerprint_follows_every_field():
    base = text("a")
    others = [
        text("b"),
        text("a", domain="code"),
        text("a", source="t"),
        Document("prose", "s", None, ({"role": "user", "content": "a"},)),
    ]
    prints = {corpus.fingerprint([document]) for document in [base, *others]}
    assert len(prints) == 5
    assert corpus.fingerprint([base]) == corpus.fingerprint([text("a")])
