"""Presets: the mixes that llama.cpp and mlx-lm make, matrix by matrix, under the names they use.

People compare a searched mix with them, and can ask for them by name.

llama.cpp's rules are in :mod:`.llama_cpp`. mlx-lm's are those of
``mlx_lm.convert``: one type throughout, or ``mixed_quant_predicate_builder``'s two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bitquilt import qtypes
from bitquilt.allocation.llama_cpp import (
    ATTN_OUT,
    ATTN_V,
    FALLBACK,
    FFN_DOWN,
    LLAMA_CPP,
    Block,
    PresetRule,
    more_bits,
)
from bitquilt.allocation.preset_names import MLX_MIXED
from bitquilt.allocation.recipe import require_fit
from bitquilt.errors import UserError
from bitquilt.models.architectures import architecture_of
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.names import in_block, layer_of
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.targets import get_target

KINDS_OF = {
    "self_attn.v_proj": ATTN_V,
    "self_attn.o_proj": ATTN_OUT,
    "mlp.down_proj": FFN_DOWN,
}
"""Matrix within a block → the kind that llama.cpp's rules know it as."""


def preset(name: str, checkpoint: Checkpoint, target: str) -> dict[str, str]:
    """Return the allocation that a preset gives a model.

    Args:
        name: one of :func:`~.preset_names.preset_names`.
        checkpoint: the model; only its config and shapes are looked at.
        target: the name of the target.

    Returns:
        Module path → type name, for every matrix, in the checkpoint's order.

    Raises:
        UserError: the target has no such preset, or a row length cannot take its type.
    """
    choices = _presets(target)
    if name not in choices:
        known = ", ".join(choices)
        raise UserError(
            f'there is no preset "{name}" for {target}; choose one of {known}, '
            "or give the path of a recipe"
        )
    choose = choices[name]
    return {
        module: require_fit(
            choose(checkpoint, module), module, columns, target, f"the preset {name}"
        )
        for module, (_, columns) in checkpoint.matrices.items()
    }


def _llama_cpp_qtype(rule: PresetRule, checkpoint: Checkpoint, module: str) -> str:
    columns = checkpoint.matrices[module][1]
    if module == HEAD or (module == EMBEDDING and checkpoint.tied):
        qtype = _head_qtype(rule.base, columns)
    elif module == EMBEDDING:
        qtype = rule.base
    else:
        qtype = _block_qtype(rule, checkpoint, module)
    return qtype if qtypes.get(qtype).fits(columns) else FALLBACK.get(qtype, qtype)


def _head_qtype(base: str, columns: int) -> str:
    """Return the type of the output head, tied or not: six bits, or eight."""
    return "Q8_0" if base == "Q8_0" or not qtypes.get(base).fits(columns) else "Q6_K"


def _block_qtype(rule: PresetRule, checkpoint: Checkpoint, module: str) -> str:
    block = _block(checkpoint, module)
    qtype = rule.base
    kind = KINDS_OF.get(in_block(module))
    for part, where, other in rule.exceptions:
        if kind == part and where(block):
            qtype = other
            break
    is_70b = architecture_of(checkpoint.config).is_70b
    if kind == ATTN_V and qtype in ("Q3_K", "Q4_K") and is_70b(checkpoint.config):
        return "Q5_K"
    return qtype


def _is_affine(qtype: str) -> bool:
    return isinstance(qtypes.get(qtype), Affine)


def _uniform_qtype(qtype: str, checkpoint: Checkpoint, module: str) -> str:
    return qtype


def _mixed_qtype(low: str, high: str, checkpoint: Checkpoint, module: str) -> str:
    if module == HEAD:
        return high
    if module == EMBEDDING:
        return low
    kind = KINDS_OF.get(in_block(module))
    raised = kind in (ATTN_V, FFN_DOWN) and more_bits(_block(checkpoint, module))
    return high if raised else low


def _block(checkpoint: Checkpoint, module: str) -> Block:
    """Return the block that a matrix is in, e.g. 3 for ``model.layers.3.mlp.down_proj``."""
    layer = layer_of(module)
    if layer is None:
        raise ValueError(f"{module} is in no block")
    heads = int(checkpoint.config["num_attention_heads"])
    kv_heads = int(checkpoint.config["num_key_value_heads"])
    return Block(layer, checkpoint.layers, heads // kv_heads)


PresetFn = Callable[[Checkpoint, str], str]
"""(model, module path of a matrix) → the type that a preset gives this matrix."""

PRESETS: Mapping[str, Mapping[str, PresetFn]] = {
    "llama.cpp": {name: partial(_llama_cpp_qtype, rule) for name, rule in LLAMA_CPP.items()},
    "mlx-lm": {
        **{n: partial(_uniform_qtype, n) for n in qtypes.names() if _is_affine(n)},
        **{name: partial(_mixed_qtype, *pair) for name, pair in MLX_MIXED.items()},
    },
}
"""Program → name of its preset → what it gives each matrix; a target says whose presets it has."""


def _presets(target: str) -> Mapping[str, PresetFn]:
    return PRESETS[get_target(target).presets]
