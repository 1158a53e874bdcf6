"""Rotary position embedding (RoPE) in GGUF: its keys, and Llama 3's divisors in a tensor.

Parameters are in the words of transformers' ``rope_parameters``: ``rope_theta``, ``rope_type``,
``factor`` and so on, for the layers with full attention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bitquilt.errors import UserError
from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.header import GgufHeader

RopeParameters = dict[str, Any]

RopeFactors = npt.NDArray[np.float32]
"""What Llama 3's scaling divides each frequency by, [head_dim / 2]."""

ROPE_FREQS = "rope_freqs.weight"
"""The tensor that carries :data:`RopeFactors`."""

_DEFAULT_THETA = 10_000.0
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What every released Llama 3 has besides its factor, and no GGUF file says."""
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""YaRN as transformers and llama.cpp agree on it."""


def rope_keys(parameters: RopeParameters) -> dict[str, MetadataValue]:
    """The keys of a scaling, without the architecture's name; Llama 3's is a tensor instead.

    Raises:
        UserError: llama.cpp has no such scaling.
    """
    kind = parameters["rope_type"]
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": float(parameters["factor"]),
        }
    if kind == "yarn":
        return _yarn_keys(parameters)
    raise UserError(
        f"rope_scaling of type {kind} cannot be written exactly as GGUF; give --to=mlx, or remove "
        "it from config.json to run without it"
    )


def _yarn_keys(parameters: RopeParameters) -> dict[str, MetadataValue]:
    odd = [k for k, v in _YARN_DEFAULTS.items() if parameters.get(k) not in (None, v)]
    odd += [k for k in ("attention_factor", "mscale", "mscale_all_dim") if parameters.get(k)]
    if odd:
        raise UserError(
            f"rope_scaling.{odd[0]} of this YaRN model cannot be written exactly as GGUF; give "
            "--to=mlx"
        )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(parameters["factor"]),
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
    }


def read_rope(header: GgufHeader, head_dim: int) -> RopeParameters:
    """The parameters that a file's keys and its :data:`ROPE_FREQS` amount to.

    Raises:
        UserError: the file turns a part of each head only, or scales in a way that transformers
            has no words for.
    """
    rotary = header.get("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UserError(
            f"{header.path} applies RoPE to {rotary} of the {head_dim} dimensions of a head "
            f"({header.architecture}.rope.dimension_count), and bitquilt reads only models that "
            "apply it to all of them; quantize another model"
        )
    theta = float(header.get("rope.freq_base", _DEFAULT_THETA))
    if ROPE_FREQS in header.tensors:
        return {"rope_theta": theta, **_read_llama3(header, theta, head_dim)}
    return {"rope_theta": theta, **_read_scaling(header)}


def _read_scaling(header: GgufHeader) -> RopeParameters:
    kind = header.get("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise UserError(
            f"{header.path} scales RoPE by {kind} ({header.architecture}.rope.scaling.type), and "
            "bitquilt reads only none, linear, yarn and Llama 3's rope_freqs; quantize from the "
            "Hugging Face checkpoint"
        )
    scaling = {"rope_type": kind, "factor": float(header.required("rope.scaling.factor"))}
    if kind == "yarn":
        original = header.required("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = int(original)
    return scaling


def rope_factors(parameters: RopeParameters, head_dim: int) -> RopeFactors | None:
    """Llama 3's divisors, float32 [head_dim / 2]; None where RoPE is not scaled its way.

    Long wavelengths are divided by ``factor``, short ones are left alone, those between are
    blended. Source: Llama 3.1's reference ``apply_scaling``.
    """
    if parameters["rope_type"] != "llama3":
        return None
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    context = float(parameters["original_max_position_embeddings"])
    steps = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequency = parameters["rope_theta"] ** -steps
    turns = context * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: RopeFactors = (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)
    return factors


def _read_llama3(header: GgufHeader, theta: float, head_dim: int) -> RopeParameters:
    """Llama 3's scaling, recovered from the divisors that a converter computed from it.

    The factor is the largest divisor; the formula must give back the others.
    """
    stored = header.tensors[ROPE_FREQS]
    found = np.memmap(header.path, np.float32, "r", stored.offset, stored.shape)
    scaling = {"rope_type": "llama3", "factor": float(found.max()), **_LLAMA3}
    expected = rope_factors({"rope_theta": theta, **scaling}, head_dim)
    assert expected is not None
    if expected.shape != found.shape or not np.allclose(expected, found, rtol=1e-3):
        raise UserError(
            f"{header.path} has RoPE factors ({ROPE_FREQS}) that do not follow from Llama 3's "
            "scaling; quantize from the Hugging Face checkpoint"
        )
    return scaling
