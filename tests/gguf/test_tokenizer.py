"""Tokenizers in GGUF: llama.cpp splits text exactly as Hugging Face does, or we refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.gguf.tokenizer import SPLITTINGS, read, tokenizer_keys
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF
from tests.factories import LLAMA3_SPLIT, VOCABULARY, tiny_checkpoint
from tests.targets.conftest import Model

TEXTS = (
    "Hello world, what's 347+585?",
    "  indented\n\n\tdef f(x): return x**2  \n",
    "I'LL SAY IT'S ÉTÉ; naïve café, über-Größe",
    "1234567 12.5% 3/4 ١٢٣",
    "你好，世界 🙂👩‍🚀 ﷽ …—“quoted”",
    "<|eot_id|>after<|eot_id|> a control token",
    "word\r\nwindows   spaces\u00a0nbsp",
)
CORPUS = [Path(__file__).read_text("utf-8"), *TEXTS]
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(split: pre_tokenizers.PreTokenizer, *, whole_words: bool = False) -> Tokenizer:
    """A byte-level BPE trained with that splitting."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|eot_id|>"])
    return tokenizer


def on_regex(pattern: str) -> pre_tokenizers.PreTokenizer:
    """A regular expression, then bytes, as Llama 3, Qwen and Mistral write it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def sentencepiece() -> Tokenizer:
    """A BPE with byte fallback as transformers converts Llama 2's and Gemma's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, special_tokens=special, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS[:1], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(["<|eot_id|>"])
    return tokenizer


def digits() -> pre_tokenizers.PreTokenizer:
    """SmolLM's: single digits, then GPT-2's expression."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def tekken() -> Tokenizer:
    """Mistral's."""
    (pattern,) = SPLITTINGS["tekken"].patterns
    return byte_level(on_regex(pattern), whole_words=True)


TOKENIZERS = {
    "llama-bpe": lambda: byte_level(on_regex(LLAMA3_SPLIT), whole_words=True),
    "smaug-bpe": lambda: byte_level(on_regex(LLAMA3_SPLIT)),
    "qwen2": lambda: byte_level(on_regex(QWEN2_SPLIT)),
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(digits()),
    "tekken": tekken,
    "default": sentencepiece,
}


def write_with(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A GGUF file of the tiny model with another tokenizer."""
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>")
    wrapped.save_pretrained(source)
    model = Model(source, open_checkpoint(source))
    path = tmp_path / "model.gguf"
    GGUF.write(model.checkpoint, model.on("F32"), model.packed, path, "{}")
    return path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llamacpp_splits_alike(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    path = write_with(tokenizer, tmp_path)
    with open_llamacpp(path, threads=1) as engine:
        for text in TEXTS:
            assert engine.tokenize(text) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("name", TOKENIZERS.keys() - {"smaug-bpe"})
def test_one_rebuilt_from_gguf_is_written_again(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    first = open_checkpoint(write_with(tokenizer, tmp_path))
    again = Model(first.tokenizer_dir, replace(first, gguf_source=None))
    path = tmp_path / "again.gguf"
    GGUF.write(again.checkpoint, again.on("F32"), again.packed, path, "{}")
    with open_llamacpp(path, threads=1) as engine:
        for text in TEXTS:
            assert engine.tokenize(text) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - {"smaug-bpe", "default"}))
def test_keys_of_a_rebuilt_tokenizer_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    path = write_with(TOKENIZERS[name](), tmp_path)
    metadata = read_header(path).metadata
    rebuilt = open_checkpoint(path)
    ends = {"eos_token_id": rebuilt.generation_config["eos_token_id"]}
    config = rebuilt.config | ends
    keys = tokenizer_keys(rebuilt.tokenizer_dir, config, rebuilt.chat_template)
    assert keys == {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


def test_another_conversion_does_not_take_what_an_older_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_with(TOKENIZERS["gpt-2"](), tmp_path)
    kept = open_checkpoint(path).tokenizer_dir
    (kept / "tokenizer.json").write_text("mistaken")
    assert open_checkpoint(path).tokenizer_dir == kept
    monkeypatch.setattr(read, "CONVERSION", read.CONVERSION + 1)
    again = open_checkpoint(path).tokenizer_dir
    assert again != kept
    assert Tokenizer.from_file(str(again / "tokenizer.json")).get_vocab_size() == VOCABULARY
    assert again.parent == user_cache_path("bitquilt") / "tokenizers"


def test_unknown_splitting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"splits text by regex \[a-z\]\+, for which bitquilt knows no"
    ):
        write_with(byte_level(on_regex("[a-z]+")), tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["gpt-2"]()
    tokenizer.add_tokens(["one", "too", "many"])
    with pytest.raises(UserError, match="belongs to another model"):
        write_with(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "config", "words"),
    [
        ("{}", {}, r"tokenizer\.json is not a tokenizer"),
        ("[", {}, r"tokenizer\.json cannot be read as JSON"),
        (Tokenizer(models.Unigram([("a", 0.0)])).to_str(), {}, "is a Unigram tokenizer"),
        (None, {"eos_token_id": [1, VOCABULARY]}, f"gives eos_token_id {VOCABULARY}, but"),
    ],
)
def test_damage_is_one_sentence(
    tokenizer: str | None, config: dict[str, object], words: str, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    if tokenizer is not None:
        (source / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(UserError, match=words):
        tokenizer_keys(source, {"vocab_size": VOCABULARY, **config}, None)
