"""The process in which mlx-lm converts a model.

    python -m bitquilt.bases.mlx_child DIRECTORY OUTPUT DTYPE

Beside the model it leaves ``quantizable.json``: the path of each module that mlx-lm can quantize →
true, false where the model's class refuses it, or the entry that the class asks for.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bitquilt.bases.converter_child import field_of_transformers

_Done = TypeVar("_Done")


def convert_in_mlx(directory: str, output: str, dtype: str) -> None:
    """Convert without quantizing, and list what could be quantized."""
    convert: Any = importlib.import_module("mlx_lm").convert
    utils: Any = importlib.import_module("mlx_lm.utils")
    load_model, load_config = utils.load_model, utils.load_config
    options = {"quantize": False, "dtype": dtype or None, "trust_remote_code": False}

    def converted(given: dict[str, Any]) -> None:
        utils.load_config = lambda path: completed(load_config(path), given)
        convert(directory, output, **options)

    with_lacking_fields(directory, converted)
    model, _ = load_model(Path(output), lazy=True)
    asked = getattr(model, "quant_predicate", None)
    found = {
        path: True if asked is None else asked(path, module)
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized")
    }
    text = json.dumps(found, indent=1, sort_keys=True)
    (Path(output) / "quantizable.json").write_text(text, encoding="utf-8")


def with_lacking_fields(directory: str, does: Callable[[dict[str, Any]], _Done]) -> _Done:
    """Do something again with fields of a config that a class of mlx-lm requires and it lacks.

    Args:
        directory: of the model; transformers knows what it computes the model with.
        does: is given the fields.
    """
    given: dict[str, Any] = {}
    while True:
        try:
            return does(given)
        except TypeError as error:
            said = str(error)
            names = re.findall(r"'(\w+)'", said) if "required positional argument" in said else []
            found = {name: field_of_transformers(directory, name) for name in names}
            more = {name: value for name, value in found.items() if value is not None}
            if more.keys() <= given.keys():
                raise
            given = {**given, **more}


def completed(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return a config with fields that mlx-lm looks for, also in its language model's part.

    Wrappers have the number of tokens there; mlx-lm takes that of the first model otherwise.

    Args:
        config: of the model.
        given: fields that it lacks.
    """
    config, text = {**given, **with_rope_fields(config)}, config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = {**given, **text}
        if "vocab_size" in text:
            config.setdefault("vocab_size", text["vocab_size"])
    return config


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
        plain = scaling.get("rope_type", "default") == "default"
        part.setdefault("rope_scaling", None if plain else scaling)
    return config


if __name__ == "__main__":
    convert_in_mlx(*sys.argv[1:])
