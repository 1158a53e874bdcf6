"""Tiny checkpoints whose matrices are stored in parts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.factories import tiny_checkpoint

StoredParts = dict[str, torch.Tensor]
Q = "model.layers.0.self_attn.q_proj.weight"
_WHOLE = re.compile("embed|lm_head|vision|projector")
SMALL = {"layers": 1, "hidden": 128, "heads": 2, "kv_heads": 1}


def quantized(
    tmp_path: Path,
    settings: dict[str, object],
    make: Callable[[torch.Tensor], StoredParts],
    field: str = "quantization_config",
) -> Path:
    """A tiny model whose matrices, but for the embedding, are stored in parts."""
    directory = tiny_checkpoint(tmp_path, "qwen3", **SMALL)
    store_in_parts(directory, settings, make, field)
    return directory


def store_in_parts(
    directory: Path,
    settings: dict[str, object],
    make: Callable[[torch.Tensor], StoredParts],
    field: str = "quantization_config",
) -> None:
    """Store a model's matrices in parts, but for the embedding, the head and what sees."""
    path, found = directory / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        if tensor.ndim == 2 and not _WHOLE.search(name):
            module = name.removesuffix(".weight")
            parts = make(tensor.float())
            found |= {f"{module}.{part}": t.contiguous() for part, t in parts.items()}
        else:
            found[name] = tensor
    save_file(found, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {field: settings}))


def words_of(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Rows of int32 by text: each code's bits, the first code in the last letters of a stream."""
    rows = []
    for row in codes:
        text = "".join(f"{int(code):0{bits}b}" for code in row[::-1])
        rows.append([int(text[max(end - 32, 0) : end], 2) for end in range(len(text), 0, -32)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))
