"""The process in which mlx-lm converts a model: run by path, it imports nothing of bitquilt.

    python mlx_child.py DIRECTORY OUTPUT DTYPE

Beside the model it leaves ``quantizable.json``: the path of each module that mlx-lm can quantize →
true, false where the model's class refuses it, or the entry that the class asks for.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def convert_in_mlx(directory: str, output: str, dtype: str) -> None:
    """Convert without quantizing, and list what could be quantized."""
    convert: Any = importlib.import_module("mlx_lm").convert
    utils: Any = importlib.import_module("mlx_lm.utils")
    load_model, load_config = utils.load_model, utils.load_config
    utils.load_config = lambda path: with_rope_fields(load_config(path))
    convert(directory, output, quantize=False, dtype=dtype or None, trust_remote_code=False)
    model, _ = load_model(Path(output), lazy=True)
    asked = getattr(model, "quant_predicate", None)
    found = {
        path: True if asked is None else asked(path, module)
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized")
    }
    text = json.dumps(found, indent=1, sort_keys=True)
    (Path(output) / "quantizable.json").write_text(text, encoding="utf-8")


def with_rope_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Add what transformers 5 writes in ``rope_parameters`` where mlx-lm's models look for it.

    Without a base of the rotation, several of them take 10000; without the part of a head that is
    rotated, what their first model had.
    """
    for part in (config, config.get("text_config")):
        stated = part.get("rope_parameters") if isinstance(part, dict) else None
        if not (part and isinstance(stated, dict) and "rope_theta" in stated):
            continue
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in stated:
                part.setdefault(name, stated[name])
        scaling = {key: value for key, value in stated.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            part.setdefault("rope_scaling", scaling)
    return config


if __name__ == "__main__":
    convert_in_mlx(*sys.argv[1:])
