from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bitquilt.config  # noqa: F401 (its fields are how sentences name options)

# two busy cores lose more to waiting threads than tiny matrices gain
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rebuilt tokenizers go to a directory of the test."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory
