"""Stock mlx-lm on our directories: the same logits as transformers on the original."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bitquilt.engines import Sampling, open_engine
from bitquilt.engines import mlx as mlx_engine
from bitquilt.engines.torch import TorchEngine
from bitquilt.errors import UserError
from bitquilt.targets import MLX
from tests.engines.conftest import divergence, generated, original_logits
from tests.targets.conftest import Model

needs_mlx = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed"
)

EXACT = 1e-3
BFLOAT16 = 0.01
"""Quantized models compute in bfloat16 where mlx has a GPU."""

SHAPES: dict[str, dict[str, object]] = {
    "llama4_text": {},
    "llama4_text without QK norm, untied": {"qk_norm": False, "tied": False},
    "llama 576 wide": {"hidden": 576},
    "qwen2": {},
    "qwen3": {"tied": False},
    "mistral": {},
    "gemma3_text": {"layers": 6},
}


def write(model: Model, directory: Path, *qtypes: str) -> Path:
    """A mix as a directory."""
    MLX.write(model.checkpoint, model.on(*qtypes), model.packed, directory, "{}")
    return directory


@needs_mlx
@pytest.mark.parametrize("case", SHAPES)
def test_same_logits_as_the_original(
    case: str,
    make_model: Callable[..., Model],
    windows: npt.NDArray[np.int64],
    tmp_path: Path,
) -> None:
    from bitquilt.engines import mlx_backend

    model = make_model(case.split()[0], **SHAPES[case])
    backend = mlx_backend.MlxBackend(str(write(model, tmp_path / "model", "F32")))
    for window, reference in zip(windows, original_logits(model, windows), strict=True):
        logits = backend.window(window.tolist())
        np.testing.assert_allclose(logits, reference, rtol=0, atol=EXACT)


@needs_mlx
@pytest.mark.parametrize("family", ["llama4_text", "llama", "qwen2", "gemma3_text"])
def test_mixes_compute_with_the_weights_that_are_read_back(
    family: str,
    make_model: Callable[..., Model],
    windows: npt.NDArray[np.int64],
    tmp_path: Path,
) -> None:
    from bitquilt.engines import mlx_backend

    model = make_model(family, layers=6 if family == "gemma3_text" else 2)
    mix = ("4bit-g64", "mxfp4", "8bit-g32", "3bit-g64", "BF16", "F32", "5bit-g32", "nvfp4", "mxfp8")
    directory = write(model, tmp_path / "model", *mix)
    weights = MLX.read_weights(directory)
    with TorchEngine(replace(model.checkpoint, reader=weights.__getitem__)) as engine:
        truth = next(iter(engine.logits(windows[:1])))
    logits = mlx_backend.MlxBackend(str(directory)).window(windows[0].tolist())
    assert divergence(truth, logits) < BFLOAT16


@needs_mlx
def test_a_context_is_read_by_its_older_name(
    make_model: Callable[..., Model], tmp_path: Path
) -> None:
    config = write(make_model("llama", layers=1), tmp_path / "model", "F32") / "config.json"
    written = config.read_text().replace('"max_position_embeddings"', '"n_positions"')
    assert '"n_positions"' in written
    config.write_text(written)
    with open_engine(config.parent) as engine:
        assert engine.info.context == json.loads(written)["n_positions"]


@needs_mlx
def test_greedy_answers_are_those_of_torch(
    make_model: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_model(layers=1)
    directory = write(model, tmp_path / "model", "F32")
    with open_engine(directory) as engine, open_engine(model.source) as reference:
        prompt = engine.tokenize("What is 347 + 585?", add_special=True)
        answers = [generated(e, prompt, Sampling(), 12) for e in (engine, reference)]
        assert answers[0] == answers[1] != ""
        assert engine.info == reference.info


def test_missing_mlx_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mlx_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*mlx"):
        mlx_engine.open_mlx(tmp_path)
