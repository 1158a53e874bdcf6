"""The demo model as a file that llama.cpp runs: quick enough to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitquilt import demo
from bitquilt.models import open_checkpoint
from bitquilt.targets import GGUF
from tests.targets.conftest import Model


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All matrices on Q8_0; engines started meanwhile do not spin."""
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    model = Model(demo.path(), open_checkpoint("demo"))
    GGUF.write(model.checkpoint, model.on("Q8_0"), model.packed, path, "{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield path
