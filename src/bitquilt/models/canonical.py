"""Exact rewrites to an architecture that every engine runs.

Most families are run as they are, given a config that engines compute exactly; some are another
family in other words (:data:`~bitquilt.models.architectures.REWRITES`). Everything here is a pure
function of the config.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bitquilt.errors import UnknownFamilyError, UserError, in_brief
from bitquilt.models import layout
from bitquilt.models.architectures import ARCHITECTURES, REWRITES, WRAPPERS
from bitquilt.models.architectures.conditions import COMMON, Condition, first_failed
from bitquilt.models.architectures.rewrite import Rewrite, TensorOrigin
from bitquilt.models.config import ModelConfig, complete
from bitquilt.models.config_fields import refuse_odd_fields, refuse_odd_wrapper

QUANTIZED = ("quantization_config", "quantization")
"""Entries of a config.json that say its weights are quantized."""

DEQUANTIZED = ("fp8", "compressed-tensors", "modelopt", "gptq", "awq", "bitsandbytes", "mlx-lm")
"""Methods of :func:`quantization_method` whose weights are dequantized on reading."""

_REWRITTEN = ", ".join(f"{name} ({rewrite.about})" for name, rewrite in REWRITES.items())
WORKS = (
    f"{_REWRITTEN}, {', '.join(ARCHITECTURES)}, and the text half of "
    f"{' and '.join(sorted(WRAPPERS))}"
)
"""The model types that can be opened, for error messages."""
BY_CONVERTER = "use `bitquilt quantize`, which begins with the format's own converter"
"""What to do with the other models."""


@dataclass(frozen=True)
class Canonical:
    """A checkpoint's canonical form, before any weight is read."""

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    origins: dict[str, TensorOrigin]


def canonical(config: ModelConfig) -> Canonical:
    """The canonical form of a config as published.

    Raises:
        UserError: the architecture, or one field of it, has no exact rewrite; it names the field.
    """
    text = text_config(config)
    found, failed = _completed(text)
    if failed is not None:
        raise _unfit(found, failed)
    rewrite = REWRITES.get(text["model_type"])
    if rewrite is not None:
        return _rewritten(found, rewrite)
    shapes = layout.shapes(found)
    return Canonical(found, shapes, {name: TensorOrigin(name) for name in shapes})


def has_tables(config: ModelConfig) -> bool:
    """Say whether a published config, or the text half of one, is one of ours.

    Of a model type that is, a config may still ask for what only converters write. One that
    nothing serves counts as ours: :func:`canonical` says what is the matter.

    Raises:
        UserError: a field is of another kind than it must be, or the weights are quantized already.
    """
    if not _is_known(config):
        return False
    _, failed = _completed(text_config(config))
    return failed is None or not failed.converted


def who_lacks_tables(config: ModelConfig) -> str:
    """Say of which models bitquilt has no tables, as a sentence about one of them.

    Raises:
        UserError: as :func:`has_tables`.
    """
    said = f"bitquilt does not know {config.get('model_type')} models"
    if _is_known(config):
        found, failed = _completed(text_config(config))
        if failed is not None:
            said += f" with {_stated(found, failed)}"
    return f"{said} itself"


def text_config(config: ModelConfig) -> ModelConfig:
    """The language model's part of a config, with the model_type of an architecture that works.

    Raises:
        UserError: the architecture is unknown, or the weights are quantized already.
    """
    model_type = config.get("model_type")
    text = config
    refuse_odd_wrapper(config)
    if model_type in WRAPPERS:
        text = {"model_type": WRAPPERS[model_type], **config.get("text_config", {})}
        if "tie_word_embeddings" in config:
            text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
        model_type = text["model_type"]
    if model_type not in REWRITES and model_type not in ARCHITECTURES:
        raise UnknownFamilyError(
            f"model_type {model_type} is not an architecture that bitquilt knows itself, which are "
            f"{WORKS}",
            f"for others, {BY_CONVERTER}",
        )
    refuse_odd_fields(text)
    for field in QUANTIZED:
        stated = config.get(field) or text.get(field)
        if stated and (method := quantization_method(stated)) not in DEQUANTIZED:
            raise UserError(
                f"config.json has {field}: these weights are quantized already, by {method}, and "
                f"bitquilt reads {', '.join(DEQUANTIZED)} only; give the original checkpoint, or a "
                "GGUF file, which is dequantized on reading"
            )
    return {field: value for field, value in text.items() if field not in QUANTIZED}


def quantization_method(stated: Any) -> str:
    """Who quantized the weights of a config, by its field; mlx-lm does not say its name."""
    named = stated.get("quant_method") if isinstance(stated, dict) else None
    return str(named or "mlx-lm")


def states_tying(config: ModelConfig) -> bool:
    """Say whether a config says if the embedding is the head; wrappers often leave it out.

    Raises:
        UserError: its model_type or text_config is of another kind than it must be.
    """
    refuse_odd_wrapper(config)
    inside = config.get("text_config", {}) if config.get("model_type") in WRAPPERS else {}
    return "tie_word_embeddings" in {**config, **inside}


def source_names(stored: Iterable[str]) -> dict[str, str]:
    """Stored tensor names → names without what wrappers put before them, or as if one had.

    ``language_model.model.layers.0…`` and ``model.language_model.layers.0…`` of multimodal models
    and ``_orig_mod.model.layers.0…`` of compiled ones mean ``model.layers.0…``, and so does
    ``layers.0…`` of a backbone that was saved alone.
    """
    names = {name: untrained_name(name, wrapped=False) for name in stored}
    if any(name.startswith("model.") for name in names.values()):
        return names
    return {
        name: own if own.startswith("lm_head.") else f"model.{own}" for name, own in names.items()
    }


def is_wrapper(config: ModelConfig) -> bool:
    """Say whether a published config is of several models, as one with a vision tower."""
    return any(
        name.endswith("_config") and name not in QUANTIZED and isinstance(value, dict)
        for name, value in config.items()
    )


def untrained_name(stored: str, *, wrapped: bool) -> str:
    """Return a tensor's name in the model's class, without what training or a wrapper put before.

    ``torch.compile`` leaves ``_orig_mod.`` anywhere, and parallel training ``module.`` at the
    beginning.

    Args:
        stored: the name in the file.
        wrapped: whether the model's class is a wrapper's, which has the language model inside.
    """
    name = stored.replace("_orig_mod.", "").removeprefix("module.")
    return name if wrapped else _unwrapped(name)


def _unwrapped(stored: str) -> str:
    if stored.startswith("model.language_model."):
        return "model." + stored.removeprefix("model.language_model.")
    return stored.removeprefix("language_model.")


def in_canonical_order(origin: TensorOrigin, tensor: torch.Tensor) -> torch.Tensor:
    """A source tensor in canonical row order."""
    return tensor if origin.rows is None else tensor[origin.rows]


def _is_known(config: ModelConfig) -> bool:
    """Whether the model type of a config, or of its text half, is one of ours."""
    refuse_odd_wrapper(config)
    model_type = config.get("model_type")
    if model_type in WRAPPERS:
        model_type = config.get("text_config", {}).get("model_type", WRAPPERS[model_type])
    return model_type in REWRITES or model_type in ARCHITECTURES


def _completed(text: ModelConfig) -> tuple[ModelConfig, Condition | None]:
    """A text's config with its defaults, and the condition that it does not meet."""
    rewrite = REWRITES.get(text["model_type"])
    if rewrite is not None:
        found, own = rewrite.complete(text), rewrite.conditions
    else:
        found, own = complete(text), ARCHITECTURES[text["model_type"]].conditions
    return found, first_failed(found, (*COMMON, *own))


def _rewritten(published: ModelConfig, rewrite: Rewrite) -> Canonical:
    config = complete(rewrite.rewritten(published))
    shapes = layout.shapes(config)
    return Canonical(config, shapes, {name: rewrite.origin(name, config) for name in shapes})


def _unfit(config: ModelConfig, failed: Condition) -> UserError:
    """Say which condition a completed config does not meet."""
    if failed.converted:
        return UnknownFamilyError(
            f"bitquilt does not know {config['model_type']} models with "
            f"{_stated(config, failed)} itself: {failed.because}",
            BY_CONVERTER,
        )
    return UserError(
        f"{_stated(config, failed)} in a {config['model_type']} model is not supported: "
        f"{failed.because}; bitquilt works on {WORKS}"
    )


def _stated(config: ModelConfig, failed: Condition) -> str:
    """What a completed config has in a condition's field."""
    return f"{failed.field} = {in_brief(config.get(failed.field))}"
