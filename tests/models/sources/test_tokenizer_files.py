"""Tokenizers that are in tekken.json, or in a tokenizer.json with another model's splitting."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer import tokenizer_keys
from bitquilt.models import open_checkpoint
from bitquilt.models.inspection import inspect
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.targets import GGUF
from bitquilt.targets.same_tokens import refuse_other_tokens
from tests.factories import LLAMA3_SPLIT, VOCABULARY, tiny_checkpoint
from tests.gguf.test_tokenizer import byte_level, on_regex
from tests.magistral import MERGED, tekken_of

TEXT = "CamelCase XMLParser 12345 a/b//c hello"
SPECIALS = 32
SMALL = {"layers": 1, "hidden": 64, "heads": 1, "kv_heads": 1}


def with_tekken(directory: Path) -> Path:
    """The same model with its tokenizer in tekken.json alone."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    pieces = [bytes([byte]) for byte in range(256)] + list(MERGED)
    (directory / "tekken.json").write_text(json.dumps(tekken_of(pieces, SPECIALS)))
    return directory


@pytest.fixture
def magistral(tmp_path: Path) -> Path:
    """A mistral whose tokenizer is in tekken.json, with a prompt for its conversations."""
    directory = with_tekken(tiny_checkpoint(tmp_path, "mistral", **SMALL))
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    )
    (directory / "SYSTEM_PROMPT.txt").write_text("First draft your thinking process.")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


def test_a_tekken_tokenizer_is_converted_and_llamacpp_reads_its_tokens(magistral: Path) -> None:
    checkpoint = open_checkpoint(magistral)
    tokens = load_tokenizer(checkpoint.tokenizer_dir)
    # ranks of tekken.json come after its special tokens
    assert tokens.encode("hello")[-1] == SPECIALS + 256 + MERGED.index(b"hello")
    assert tokens.encode("[INST]a[/INST]")[-3:] == [3, SPECIALS + ord("a"), 4]
    assert refuse_other_tokens(checkpoint, [GGUF]) == []
    keys = tokenizer_keys(checkpoint.tokenizer_dir, checkpoint.config, {}, None, {})
    assert keys["tokenizer.ggml.pre"] == "tekken"
    assert keys["tokenizer.ggml.tokens"][:3] == ["<unk>", "<s>", "</s>"]
    said = {finding.subject: finding.message for finding in checkpoint.findings}
    assert "converts tekken.json to a tokenizer.json" in said["tekken.json"]
    assert "bitquilt run --system" in said["SYSTEM_PROMPT.txt"]
    assert checkpoint.tokenizer_dir != magistral
    assert (checkpoint.tokenizer_dir / "README.md").exists()  # the licence goes with it


def test_its_tokens_are_those_of_mistral_common(magistral: Path) -> None:
    stored = Path(__file__).parent / "data" / "tekken_answers.json"
    content = json.loads(stored.read_text(encoding="utf-8"))
    (magistral / "tekken.json").write_text(json.dumps(content["tekken"]))
    size = content["tekken"]["config"]["default_vocab_size"]
    config = json.loads((magistral / "config.json").read_text())
    (magistral / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    (magistral / "model.safetensors").unlink()  # a config is enough
    checkpoint = open_checkpoint(magistral)
    own = load_tokenizer(checkpoint.tokenizer_dir)
    assert len(content["answers"]) > 10
    for text, tokens in content["answers"]:
        assert own.encode(text, add_special_tokens=False) == tokens
    (note,) = refuse_other_tokens(checkpoint, [GGUF])  # llama.cpp's are the same but for marks
    assert "splits words at vowel marks" in note


@pytest.mark.skipif(find_spec("mistral_common") is not None, reason="then it is converted")
def test_an_older_tekken_is_told_what_converts_it(magistral: Path) -> None:
    content = json.loads((magistral / "tekken.json").read_text())
    del content["special_tokens"]
    (magistral / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="run `pip install mistral-common`, or give a checkpoint"):
        open_checkpoint(magistral)


def test_it_is_converted_once(magistral: Path) -> None:
    first = open_checkpoint(magistral).tokenizer_dir
    (first / "mark").write_text("")
    assert (open_checkpoint(magistral).tokenizer_dir / "mark").exists()


@pytest.mark.parametrize(
    "content", ["{}", '{"config": {"pattern": "("}, "vocab": [], "special_tokens": []}', "["]
)
def test_a_damaged_tekken_is_one_sentence(content: str, magistral: Path) -> None:
    (magistral / "tekken.json").write_text(content)
    with pytest.raises(UserError, match=r"tekken\.json .*; download it again"):
        open_checkpoint(magistral)


def mistral_with_llamas_splitting(tmp_path: Path) -> Path:
    """As Mistral's were published for a while: a large vocabulary, and Llama 3's expression."""
    directory = tiny_checkpoint(tmp_path, "mistral", **SMALL)
    content = json.loads(byte_level(on_regex(LLAMA3_SPLIT), whole_words=True).to_str())
    size = 100_100
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<filler{i}>": i for i in range(VOCABULARY, size)}
    vocabulary["12"] = size
    content["model"]["merges"].append(["1", "2"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|eot_id|>"
    )
    wrapped.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"vocab_size": size + 1, "transformers_version": "4.52.0"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").unlink()  # a config is enough
    return directory


def test_mistrals_vocabulary_is_split_as_mistral_trained_it(tmp_path: Path) -> None:
    directory = mistral_with_llamas_splitting(tmp_path)
    wrong = AutoTokenizer.from_pretrained(directory).encode(TEXT)
    right = AutoTokenizer.from_pretrained(directory, fix_mistral_regex=True).encode(TEXT)
    assert wrong != right
    checkpoint = open_checkpoint(directory)
    assert load_tokenizer(checkpoint.tokenizer_dir).encode(TEXT) == right
    keys = tokenizer_keys(checkpoint.tokenizer_dir, checkpoint.config, {}, None, {})
    assert keys["tokenizer.ggml.pre"] == "tekken"
    (found,) = [f for f in inspect(str(directory)).findings if f.subject == "tokenizer.json"]
    assert "splits text as Llama 3 does" in found.message


@pytest.mark.parametrize("fields", [{"transformers_version": "5.1.0"}, {"model_type": "llama"}])
def test_others_are_left_as_they_are(fields: dict[str, str], tmp_path: Path) -> None:
    directory = mistral_with_llamas_splitting(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))
    assert open_checkpoint(directory).tokenizer_dir == directory
