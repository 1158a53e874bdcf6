"""Tokenizers in GGUF: llama.cpp splits text exactly as Hugging Face does, or we refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitquilt.engines import GenerationRequest, Sampling, open_engine
from bitquilt.engines.llamacpp import open_llamacpp, open_vocabulary
from bitquilt.engines.llamacpp_backend import LlamaCppBackend
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.gguf.tokenizer import SPLITTINGS, read, tokenizer_keys
from bitquilt.models import open_checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.talk.grammar import regex_grammar
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


def deepseek_coder() -> pre_tokenizers.PreTokenizer:
    """As its tokenizer.json has it."""
    *patterns, _ = SPLITTINGS["deepseek-coder"].patterns
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def falcon() -> pre_tokenizers.PreTokenizer:
    """As its tokenizer.json has it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


TOKENIZERS = {
    "deepseek-coder": lambda: byte_level(deepseek_coder()),
    "falcon": lambda: byte_level(falcon()),
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


UNCOMPOSED = (
    "e\u0301 e\u0323\u0302 \u1100\u1161 A\u030a",
    "Tie\u0302\u0301ng Vie\u0323\u0302t",  # Vietnamese
    "a>\u0338b <|eot_id|>\u0338",  # a mark's end is no letter
)


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
@pytest.mark.parametrize("joins", [True, False])
def test_accents_are_joined_where_the_tokenizer_does(
    name: str, joins: bool, tmp_path: Path
) -> None:
    tokenizer = TOKENIZERS[name]()
    if joins:
        tokenizer.normalizer = normalizers.NFC()
    path = write_with(tokenizer, tmp_path)
    rebuilt = load_tokenizer(open_checkpoint(path).tokenizer_dir)
    with open_engine(path) as engine, open_vocabulary(path) as llama_cpp:
        for text in UNCOMPOSED:
            meant = tokenizer.encode(text).ids
            assert (engine.tokenize(text), rebuilt.encode(text)) == (meant, meant), text
            assert (llama_cpp.tokenize(text) != meant) == joins, text


@pytest.mark.parametrize("joins", [True, False])
def test_a_grammar_is_followed_as_it_is(joins: bool, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["qwen2"]()
    if joins:
        tokenizer.normalizer = normalizers.NFC()
    request = GenerationRequest(
        tokens=[1], sampling=Sampling(), max_tokens=40, grammar=regex_grammar("caf" + UNCOMPOSED[0])
    )
    with open_engine(write_with(tokenizer, tmp_path)) as engine, engine.stream([request]) as said:
        text = "".join(piece.text for _, piece in said if not piece.control)
    assert text == "caf" + UNCOMPOSED[0]


@pytest.mark.parametrize("name", TOKENIZERS.keys())
def test_one_rebuilt_from_gguf_is_written_again(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    first = open_checkpoint(write_with(tokenizer, tmp_path))
    again = Model(first.tokenizer_dir, replace(first, gguf_source=None))
    path = tmp_path / "again.gguf"
    GGUF.write(again.checkpoint, again.on("F32"), again.packed, path, "{}")
    with open_llamacpp(path, threads=1) as engine:
        for text in TEXTS:
            assert engine.tokenize(text) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - {"default"}))
def test_keys_of_a_rebuilt_tokenizer_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    path = write_with(TOKENIZERS[name](), tmp_path)
    metadata = read_header(path).metadata
    rebuilt = open_checkpoint(path)
    ends = {"eos_token_id": rebuilt.generation_config["eos_token_id"]}
    keys = tokenizer_keys(
        rebuilt.tokenizer_dir,
        rebuilt.config | ends,
        rebuilt.generation_config,
        rebuilt.chat_template,
        rebuilt.named_templates,
    )
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
        ("[", {}, r"tokenizer\.json is not a tokenizer"),
        (Tokenizer(models.Unigram([("a", 0.0)])).to_str(), {}, "is a Unigram tokenizer"),
        (None, {"eos_token_id": [1, VOCABULARY]}, f"gives eos_token_id {VOCABULARY}, but"),
        (None, {"eos_token_id": list(range(300, 307))}, "7 tokens end this model's turns"),
    ],
)
def test_damage_is_one_sentence(
    tokenizer: str | None, config: dict[str, object], words: str, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    if tokenizer is not None:
        (source / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(UserError, match=words):
        tokenizer_keys(source, {"vocab_size": VOCABULARY, **config}, {}, None, {})


TWO = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t {{ tools }}"}]


def edited(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")


def as_gguf(source: Path, path: Path) -> Path:
    model = Model(source, open_checkpoint(source))
    GGUF.write(model.checkpoint, model.on("F32"), model.packed, path, "{}")
    return path


@pytest.mark.parametrize("own_file", [False, True])
def test_named_templates_are_kept(own_file: bool, tmp_path: Path) -> None:
    """As llama.cpp's converter names them; transformers and llama.cpp take one when asked."""
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    alone = source / "chat_template.jinja"
    if own_file:
        alone.write_text("d")
        (source / "additional_chat_templates").mkdir()
        (source / "additional_chat_templates" / "tool_use.jinja").write_text(TWO[1]["template"])
    else:
        alone.unlink()
        edited(source / "tokenizer_config.json", chat_template=TWO)
    path = as_gguf(source, tmp_path / "m.gguf")
    again = open_checkpoint(path)
    assert read_header(path).metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert (again.chat_template, again.named_templates) == ("d", {"tool_use": "t {{ tools }}"})
    assert again.tokenizer_dir is not None
    rebuilt = HubTokenizer(again.tokenizer_dir, again.config, {}).info
    with open_llamacpp(path, threads=1) as engine, open_engine(source) as original:
        for info in (engine.info, original.info, rebuilt):
            assert (info.template(tools=False), info.template(tools=True)) == ("d", "t {{ tools }}")


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        (VOCABULARY - 1, [VOCABULARY - 1, VOCABULARY - 5]),
        (VOCABULARY - 1, [VOCABULARY - 1, 300]),
        ([VOCABULARY - 1, 300], None),
        ([VOCABULARY - 1, VOCABULARY - 5, 300, 301, 302], None),
        ([VOCABULARY - 1, *range(300, 303)], list(range(301, 305))),
    ],
    ids=["second", "word", "word in the config", "five", "six in two files"],
)
def test_all_that_ends_a_turn_ends_it_in_llamacpp(
    config: object, generation: object, tmp_path: Path
) -> None:
    """Also words, which llama.cpp cannot know by their texts."""
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    edited(source / "config.json", eos_token_id=config)
    edited(source / "generation_config.json", eos_token_id=generation)
    path = as_gguf(source, tmp_path / "m.gguf")
    backend = LlamaCppBackend(str(path), False, 1)
    ends = {token for token in range(VOCABULARY) if backend.ends_turn(token)}
    original = open_checkpoint(source)
    meant = HubTokenizer(source, original.config, original.generation_config)
    stated = {token for token in range(VOCABULARY) if meant.ends_turn(token)}
    by_text = {VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 5}
    assert stated <= ends <= stated | by_text
    assert stated <= set(open_checkpoint(path).generation_config["eos_token_id"]) | by_text


@pytest.mark.parametrize("kind", [normalizers.NFKC, normalizers.Lowercase])
@pytest.mark.parametrize("name", ["qwen2", "default"])
def test_normalizers_that_llamacpp_lacks_are_refused(name: str, kind, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    steps = [kind(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    with pytest.raises(UserError, match=rf"changes text by the normalizer {kind.__name__} before"):
        write_with(tokenizer, tmp_path)


@pytest.mark.parametrize("named", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer"])
def test_the_tokens_are_those_of_tokenizer_json_whatever_class_is_named(
    named: str, tmp_path: Path
) -> None:
    tokenizer = sentencepiece()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    loaded = load_tokenizer(tmp_path)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text).ids for text in TEXTS]
