"""NaN and infinity are refused wherever a file is read, run or measured: in one sentence, early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bitquilt.evaluation import compare
from bitquilt.gguf.container import read_container
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.targets.conftest import Model

NAMED = "blk.0.attn_k.weight"
MLX_NAMED = "model.layers.0.self_attn.k_proj.scales"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    source = tiny_checkpoint(tmp_path_factory.mktemp("nan"), "llama", layers=1)
    return Model(source, open_checkpoint(source))


@pytest.fixture(scope="module")
def damaged(model, tmp_path_factory) -> Path:
    """A GGUF file with one scale that is NaN."""
    path = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    GGUF.write(model.checkpoint, model.on("Q8_0"), model.packed, path, "{}")
    stored = np.memmap(path, np.uint8, "r+")
    at = read_container(path).tensors[NAMED].offset + 34 * 5
    stored[at : at + 2] = 0x00, 0x7E
    stored.flush()
    return path


@pytest.fixture(scope="module")
def overflowing(model, tmp_path_factory) -> Path:
    """A GGUF file of finite numbers whose logits are infinite."""
    path = tmp_path_factory.mktemp("overflowing") / "overflowing.gguf"
    GGUF.write(model.checkpoint, model.on("Q8_0"), model.packed, path, "{}")
    stored = np.memmap(path, np.uint8, "r+")
    norm = read_container(path).tensors["output_norm.weight"]
    stored[norm.offset : norm.offset + norm.nbytes].view(np.float32)[:] = 3e38
    stored.flush()
    return path


@pytest.fixture
def refused(capfd, monkeypatch):
    """Run a command that must be refused; gives the one sentence."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments: str | Path) -> str:
        assert invoke(*arguments) == 2
        said = capfd.readouterr()
        assert said.out.strip() == ""
        (sentence,) = (line for line in said.err.splitlines() if line.startswith("bitquilt: "))
        assert "Traceback" not in said.err
        return sentence.removeprefix("bitquilt: ")

    return run


@pytest.fixture
def no_original(monkeypatch):
    """The original is not run: a file that cannot be measured is refused before that."""

    def begun(*_):
        raise AssertionError("the long work had begun")

    monkeypatch.setattr(compare, "_read_original", begun)


def with_verb(verb: str, path: Path, model: Model) -> list[str | Path]:
    return {
        "run": ["run", path, "Hello"],
        "bench": ["bench", path, "--prompt", "16", "--answer", "16"],
        "eval": ["eval", path, "--against", model.source],
    }[verb]


@pytest.mark.usefixtures("no_original")
@pytest.mark.parametrize("verb", ["run", "bench", "eval"])
def test_a_scale_that_is_no_number_is_named(verb, damaged, model, refused):
    sentence = refused(*with_verb(verb, damaged, model))
    assert sentence.startswith(f"{NAMED} in {damaged} holds NaN or infinite numbers")
    assert "download it again" in sentence


@pytest.mark.usefixtures("no_original")
@pytest.mark.parametrize("verb", ["run", "bench", "eval"])
def test_logits_that_are_no_numbers_are_refused_at_the_first(verb, overflowing, model, refused):
    sentence = refused(*with_verb(verb, overflowing, model))
    assert str(overflowing) in sentence
    assert "computes NaN or infinity" in sentence
    assert "--recipe Q8_0" in sentence


@pytest.mark.usefixtures("no_original")
@pytest.mark.parametrize("part", ["scales", "norm"])
def test_an_mlx_directory(part, model, tmp_path, refused):
    pytest.importorskip("mlx_lm")
    path = tmp_path / "damaged-mlx"
    MLX.write(model.checkpoint, model.on("4bit-g64"), model.packed, path, "{}")
    weights = path / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    name = MLX_NAMED if part == "scales" else "model.norm.weight"
    tensors[name].view(-1)[3] = torch.inf
    save_file(tensors, weights, metadata)
    for verb in ("run", "eval"):
        sentence = refused(*with_verb(verb, path, model))
        assert sentence.startswith(f"{name} in {path} holds NaN or infinite numbers")


def test_a_gguf_source(damaged, tmp_path, refused):
    """Refused before the work: its scales are looked at when it is opened."""
    sentence = refused("quantize", damaged, "-o", tmp_path, "--bits", "4.5")
    assert sentence.startswith(f"blk.0.attn_k.weight in {damaged} holds NaN or infinite numbers")
    assert not list(tmp_path.glob("**/*.work"))


def test_a_hugging_face_model_that_overflows_is_refused_when_it_is_run(tmp_path, refused):
    source = tiny_checkpoint(tmp_path, "llama", layers=1)
    weights = source / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, weights, metadata)
    sentence = refused("run", source, "Hello")
    assert sentence.startswith("tiny-llama computes NaN or infinity instead of a next token")
