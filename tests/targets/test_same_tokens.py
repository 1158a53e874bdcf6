"""Tokens are compared before any work: those of tokenizer.json, of llama.cpp and of mlx-lm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitquilt import pipeline, quantize
from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer import conventions, write
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF, MLX
from bitquilt.targets.same_tokens import (
    MARKED,
    OwnTokens,
    compare_tokens,
    refuse_other_tokens,
    refuse_other_tokens_of,
)
from tests.factories import LLAMA3_SPLIT, VOCABULARY, tiny_checkpoint
from tests.gguf.test_tokenizer import byte_level, on_regex, write_with
from tests.quick import QUICK

SMALL = {"layers": 1, "hidden": 64, "heads": 1, "kv_heads": 1}


def with_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A tiny model with another tokenizer."""
    directory = tiny_checkpoint(tmp_path, "llama", **SMALL)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>")
    wrapped.save_pretrained(directory)
    return directory


def llama3() -> Tokenizer:
    return byte_level(on_regex(LLAMA3_SPLIT), whole_words=True)


def test_a_tokenizer_that_engines_know_is_let_through(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_tokenizer(tmp_path, llama3()))
    assert refuse_other_tokens(checkpoint, [GGUF, MLX]) == []


def test_marks_that_llamacpp_splits_at_are_told_where_the_splitting_names_them(
    tmp_path: Path,
) -> None:
    (pattern,) = conventions.SPLITTINGS["tekken"].patterns
    tokenizer = byte_level(on_regex(pattern), whole_words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([MARKED] * 50, trainer)
    tokenizer.add_special_tokens(["<|eot_id|>"])
    checkpoint = open_checkpoint(with_tokenizer(tmp_path, tokenizer))
    (note,) = refuse_other_tokens(checkpoint, [GGUF, MLX])
    assert note.startswith("llama.cpp splits words at vowel marks")


def test_accents_that_llamacpp_leaves_apart_are_told(tmp_path: Path) -> None:
    tokenizer = llama3()
    tokenizer.normalizer = normalizers.NFC()
    checkpoint = open_checkpoint(with_tokenizer(tmp_path, tokenizer))
    (note,) = refuse_other_tokens(checkpoint, [GGUF, MLX])
    assert note.startswith("llama.cpp does not join letters with accents")
    assert note.endswith(
        "to Unicode NFC before another program than bitquilt gives it to llama.cpp"
    )


def test_a_file_that_does_not_tell_of_accents_needs_them_joined(tmp_path: Path) -> None:
    tokenizer = byte_level(on_regex(LLAMA3_SPLIT), whole_words=True)
    path = write_with(tokenizer, tmp_path)
    tokenizer.normalizer = normalizers.NFC()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>")
    wrapped.save_pretrained(tmp_path / "own")
    (note,) = refuse_other_tokens_of(path, "tiny", tmp_path / "own", None)
    assert note.endswith("to Unicode NFC before llama.cpp reads it")


def test_another_splitting_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the name of Qwen's splitting were written for Llama's: digits come in threes there."""

    def begun(*_: object) -> None:
        raise AssertionError("the long work had begun")

    monkeypatch.setattr(pipeline, "collect_statistics", begun)
    monkeypatch.setattr(write, "PRE_TOKENIZERS", dict.fromkeys(conventions.PRE_TOKENIZERS, "qwen2"))
    tokenizer = llama3()
    content = json.loads(tokenizer.to_str())
    digits = {"12", "34", "123", "67", "45", "00"} - content["model"]["vocab"].keys()
    taken = sorted(content["model"]["vocab"].values())[-len(digits) - 1 : -1]
    names = {number: text for text, number in content["model"]["vocab"].items()}
    for text, number in zip(sorted(digits), taken, strict=True):
        del content["model"]["vocab"][names[number]]
        content["model"]["vocab"][text] = number
    kept = content["model"]["vocab"]
    content["model"]["merges"] = [
        m for m in content["model"]["merges"] if {*m, "".join(m)} <= kept.keys()
    ]
    directory = with_tokenizer(tmp_path, Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(UserError, match=r"llama.cpp would split text \(digits\) into other "):
        quantize(directory, recipe="Q8_0", output=tmp_path, **QUICK | {"engine_check": True})


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        (lambda text: text.replace("  ", " "), "spaces"),
        (lambda text: text.lower(), "words"),
        (lambda text: text.replace("\ufb01", "fi"), "letters of their own width"),
        (lambda text: text.replace("<|eot_id|>x", "<|eot_id|> x"), "added tokens"),
        (lambda text: text.replace("Answer", "Please answer"), "a conversation"),
    ],
)
def test_each_text_tells_something(
    tmp_path: Path, changed: Callable[[str], str], about: str
) -> None:
    tokenizer = llama3()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
    own = OwnTokens(name="tiny", tokenizer=wrapped, template=template)
    assert compare_tokens(own, own.tokenize, "an engine", "give another") == []
    with pytest.raises(UserError, match=rf"an engine would split text \({about}.*; give another"):
        compare_tokens(
            own, lambda text, add: own.tokenize(changed(text), add), "an engine", "give another"
        )
