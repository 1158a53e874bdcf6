"""The closure under merges, against every way of doing without it, and against tokenizers."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from bitquilt.trimming.vocabulary import MergeTable, closed_vocabulary, kept_merges

LETTERS = "abc"


@st.composite
def small_bpe(draw):
    """Merges over three letters, each of tokens that are there before it, without repeats."""
    tokens, merges = list(LETTERS), []
    for _ in range(draw(st.integers(1, 9))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges and len("".join(pair)) <= 5:
            merges.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    return tokens, draw(st.permutations(merges))


def split(tokens, merges, text):
    """What Hugging Face's tokenizers make of a text."""
    model = models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges)
    return [tokens[index] for index in Tokenizer(model).encode(text).ids] if text else []


@given(small_bpe())
def test_a_token_can_be_made_if_tokenizers_makes_it_of_its_characters(bpe):
    tokens, merges = bpe
    table = MergeTable(merges)
    for token in tokens:
        assert (table.way(token) is not None) == (split(tokens, merges, token) == [token])


@given(small_bpe())
def test_a_way_is_the_smallest_vocabulary_that_makes_its_token(bpe):
    """By brute force: of all sets of tokens, those that still make it, with as few as they can."""
    tokens, merges = bpe
    table = MergeTable(merges)
    longer = [token for token in tokens if len(token) > 1]
    for token in longer:
        way = table.way(token)
        if way is None:
            continue
        own = [one for one in way if len(one) > 1]
        for count in range(len(own)):
            for others in combinations(own, count):
                some = [*LETTERS, *others]
                assert split(some, kept_merges(merges, some), token) != [token]
        every = [*LETTERS, *own]
        assert split(every, kept_merges(merges, every), token) == [token]


@settings(max_examples=200)
@given(small_bpe(), st.data())
def test_text_whose_tokens_are_all_kept_is_split_as_before(bpe, data):
    tokens, merges = bpe
    table = MergeTable(merges)
    ranked = data.draw(st.permutations(tokens))
    size = data.draw(st.integers(len(LETTERS), len(tokens)))
    kept = closed_vocabulary(set(LETTERS), ranked, table.way, size)
    assert set(LETTERS) <= kept <= set(tokens)
    assert len(kept) <= size
    some = [token for token in tokens if token in kept]
    left = kept_merges(merges, kept)
    for token in some:  # every kept token can be reached
        assert split(some, left, token) == [token]
    for text in data.draw(st.lists(st.text(LETTERS, max_size=9), min_size=3, max_size=8)):
        before = split(tokens, merges, text)
        after = split(some, left, text)
        assert "".join(after) == text
        if kept.issuperset(before):
            assert after == before


def test_those_that_matter_most_are_kept_as_far_as_there_is_room():
    table = MergeTable([("a", "b"), ("ab", "c"), ("c", "c")])
    ranked = ["abc", "cc", "ab"]
    assert closed_vocabulary("abc", ranked, table.way, 4) == {*"abc", "cc"}
    assert closed_vocabulary("abc", ranked, table.way, 5) == {*"abc", "ab", "abc"}
    assert closed_vocabulary("abc", ranked, table.way, None) == {*"abc", "ab", "abc", "cc"}
    assert closed_vocabulary("abc", ["xyz"], table.way, None) == set("abc")
