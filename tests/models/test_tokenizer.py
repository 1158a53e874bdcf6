"""A tokenizer is loaded once for as long as somebody holds it; those that end processes never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bitquilt import demo
from bitquilt.config import QuantizeConfig
from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer.tokenizer_json import read_tokenizer
from bitquilt.models import tokenizer as module
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.pipeline import Run
from bitquilt.runtime.progress import Progress
from tests.factories import tiny_checkpoint
from tests.quick import QUICK


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that transformers loads from, from now on."""
    loaded: list[Path] = []
    own = PreTrainedTokenizerFast.from_pretrained.__func__

    def from_pretrained(cls: type, directory: Path) -> object:
        loaded.append(directory)
        return own(cls, directory)

    monkeypatch.setattr(
        module.PreTrainedTokenizerFast, "from_pretrained", classmethod(from_pretrained)
    )
    return loaded


def test_one_that_is_held_is_not_loaded_again(loads: list[Path], tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    held = load_tokenizer(directory)
    assert load_tokenizer(directory) is held
    assert len(loads) == 1
    path = directory / "tokenizer_config.json"
    changed = json.loads(path.read_text()) | {"eos_token": "<|end_of_text|>"}
    path.write_text(json.dumps(changed))
    assert load_tokenizer(directory).eos_token == "<|end_of_text|>"
    assert len(loads) == 2


def test_a_run_loads_it_once_before_its_work(loads: list[Path], tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1, hidden=64, heads=1, kv_heads=1)
    config = QuantizeConfig(output=str(tmp_path / "out"), recipe="Q8_0", **QUICK)
    run = Run(directory, config, Progress())
    run.compare_tokens()
    assert loads == [directory]


def test_a_text_longer_than_the_context_is_no_reason_to_warn():
    tokenizer = load_tokenizer(demo.path())
    assert len(tokenizer.encode("one two " * 3000)) > 2048
    assert not tokenizer.deprecation_warnings  # where transformers notes that it has warned


def with_prefix(directory: Path, prefix: str, merges: list[list[str]]) -> None:
    """Let a tokenizer mark pieces within words, as WordPiece does."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    named = dict.fromkeys(["a", "b", "##c", "##d", "bc", "ac"])
    content["model"] |= {
        "continuing_subword_prefix": prefix,
        "vocab": {name: place for place, name in enumerate(named)},
        "merges": merges,
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("merges", [[["a", "b"], ["b", "##c"]], [["é", "é"]]])
@pytest.mark.parametrize("prefix", [" ", "##", "é"])
def test_merges_that_do_not_go_on_with_the_prefix_are_refused(
    merges: list[list[str]], prefix: str, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    with_prefix(directory, prefix, merges)
    with pytest.raises(UserError, match="is not what its merges go on with"):
        load_tokenizer(directory)
    with pytest.raises(UserError, match="is not what its merges go on with"):
        read_tokenizer(directory / "tokenizer.json")


def test_a_tokenizer_whose_merges_do_is_read(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    with_prefix(directory, "##", [["a", "##c"], ["b", "##c"]])
    assert read_tokenizer(directory / "tokenizer.json").token_to_id("ac") == 5


def test_a_directory_without_a_vocabulary_is_said_to_have_none(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    for file in directory.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer; put its tokenizer\.json and"):
        load_tokenizer(directory)
