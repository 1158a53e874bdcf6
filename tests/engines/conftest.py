"""Written models for the engines, and transformers' logits to hold them against."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from bitquilt.engines import Engine, GenerationRequest, Sampling, open_engine
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF, MLX
from tests.factories import VOCABULARY
from tests.targets.conftest import Model, make_model

__all__ = ["make_model"]

ENGINES = [
    "llama.cpp",
    pytest.param(
        "mlx-lm",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed"
        ),
    ),
    "torch",
]
"""For fixtures that have a model in each engine."""

WINDOWS = 2
LENGTH = 40


@pytest.fixture(autouse=True)
def _yield_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads wait by spinning, which starves them on busy machines."""
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def windows() -> npt.NDArray[np.int64]:
    """Random tokens, int64 [2, 40]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (WINDOWS, LENGTH))


def original_logits(model: Model, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Transformers on the checkpoint as it was before any rewrite, float32 [N, L, V]."""
    reference = AutoModelForCausalLM.from_pretrained(model.source, dtype=torch.float32)
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = reference(torch.from_numpy(windows)).logits.numpy()
    return logits


def divergence(truth: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence over positions, in nats; both [L, V]."""
    truth_log, other_log = (
        torch.from_numpy(logits).double().log_softmax(-1) for logits in (truth, other)
    )
    return float((truth_log.exp() * (truth_log - other_log)).sum(-1).mean())


def generated(engine: Engine, prompt: list[int], sampling: Sampling, max_tokens: int) -> str:
    """What a model says to one prompt until it ends its turn."""
    with engine.stream(
        [GenerationRequest(tokens=prompt, sampling=sampling, max_tokens=max_tokens)]
    ) as stream:
        return "".join(token.text for _, token in stream if not token.control)


def open_in(kind: str, source: Path, directory: Path) -> Engine:
    """A checkpoint's weights as they are, in one of ENGINES; files go to ``directory``."""
    model, path = Model(source, open_checkpoint(source)), source
    if kind == "llama.cpp":
        path = directory / "model.gguf"
        GGUF.write(model.checkpoint, model.on("F32"), model.packed, path, "{}")
    elif kind == "mlx-lm":
        path = directory / "model"
        MLX.write(model.checkpoint, model.on("F32"), model.packed, path, "{}")
    # fixtures that outlive a test come before _yield_waiting_threads
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        return open_engine(path)
