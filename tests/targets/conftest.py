"""One way to make a written file from a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest

from bitquilt import qtypes
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.rounding.nearest import fit
from tests.factories import tiny_checkpoint


@dataclass
class Model:
    """A tiny checkpoint with its matrices rounded on demand."""

    source: Path
    checkpoint: Checkpoint

    def packed(self, module: str, qtype: str) -> Packed:
        """Nearest rounding."""
        on = qtypes.get(qtype)
        return on.pack(fit(on, self.checkpoint.load(f"{module}.weight"), None))

    def dequantized(self, module: str, qtype: str) -> object:
        """What an engine should compute with."""
        return qtypes.get(qtype).dequantize(self.packed(module, qtype))

    def on(self, *names: str) -> dict[str, str]:
        """An assignment that deals the types out in turn."""
        return dict(zip(self.checkpoint.matrices, cycle(names), strict=False))


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Model]:
    """Arguments as :func:`tests.factories.tiny_checkpoint`."""

    def make(family: str = "llama4_text", **options: object) -> Model:
        source = tiny_checkpoint(tmp_path / "source", family, **options)
        return Model(source, open_checkpoint(source))

    return make


@pytest.fixture
def model(make_model: Callable[..., Model]) -> Model:
    """MobileLLM-R1 in small."""
    return make_model()
