"""A base that its engine does not run as transformers does is told of before the work."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bitquilt import EngineMissingError, UserError
from bitquilt.bases.converter import convert
from bitquilt.bases.importance import load_transformers_model
from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.streaming.trial import try_base
from bitquilt.targets import GGUF
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import TOKENS
from tests.progress import Recorded

pytestmark = needs_converter


@pytest.fixture(autouse=True)
def _yield_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads wait by spinning, which starves them on busy machines."""
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's directory, and its base."""
    scratch = tmp_path_factory.mktemp("granite")
    directory = unknown_checkpoint(scratch, "granite")
    convert(directory, scratch / "granite.gguf")
    return directory, scratch / "granite.gguf"


def tried(path: Path, directory: Path) -> list[str]:
    """What is said of a base, beside how long it took."""
    progress = Recorded()
    try_base(path, GGUF, load_transformers_model(directory), torch.from_numpy(TOKENS), progress)
    return [line for line in progress.lines if not line.startswith("Trying ")]


def damaged(path: Path, old: bytes, new: bytes) -> Path:
    """A copy of a file with other bytes at one place."""
    raw = path.read_bytes()
    assert (raw.count(old), len(old)) == (1, len(new))
    other = path.with_name("other.gguf")
    other.write_bytes(raw.replace(old, new))
    return other


def test_of_a_base_that_is_the_model_nothing_is_said(granite: tuple[Path, Path]) -> None:
    assert tried(granite[1], granite[0]) == []


def test_an_engine_that_computes_something_else_is_said(granite, tmp_path: Path) -> None:
    (said,) = tried(granite[1], unknown_checkpoint(tmp_path, "granite", seed=1))
    assert said.startswith("llama.cpp computes something else than transformers with granite.gguf")


def test_a_converter_that_reorders_too_much_is_said(tmp_path: Path) -> None:
    """Bamba rotates half of each head, and the converter reorders q and k as if all were."""
    directory = unknown_checkpoint(tmp_path, "bamba")
    convert(directory, tmp_path / "bamba.gguf")
    (said,) = tried(tmp_path / "bamba.gguf", directory)
    assert "is not quantized yet (KL 0.0" in said


def test_a_base_that_does_not_load_is_refused_with_the_engines_reason(granite) -> None:
    key = b"granite.block_count" + struct.pack("<I", 4)
    path = damaged(granite[1], key + struct.pack("<I", 2), key + struct.pack("<I", 3))
    with pytest.raises(UserError, match=r"cannot load .*: .*blk\.2\..* not found; give to='mlx'"):
        tried(path, granite[0])


def test_an_architecture_that_is_newer_than_the_engine_is_no_reason_to_stop(granite) -> None:
    kind = b"general.architecture" + struct.pack("<IQ", 8, 7)
    path = damaged(granite[1], kind + b"granite", kind + b"granitx")
    with pytest.raises(EngineMissingError, match=r"does not know the architecture granitx"):
        open_llamacpp(path)
    (said,) = tried(path, granite[0])
    assert said.startswith("other.gguf is not tried: ")


def test_nan_is_refused(granite, monkeypatch) -> None:
    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def logits(self, tokens: np.ndarray) -> list[np.ndarray]:
            return [np.full((tokens.shape[1], 512), np.nan, np.float32)]

    monkeypatch.setattr(type(GGUF), "open_engine", lambda *_: Broken())
    with pytest.raises(UserError, match="computes NaN or infinity"):
        tried(granite[1], granite[0])
