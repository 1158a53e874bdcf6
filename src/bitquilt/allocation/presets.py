"""Presets: the mixes that llama.cpp and mlx-lm make, matrix by matrix, under the names they use.

People compare a searched mix with them, and can ask for them by name.

llama.cpp's rules are those of ``llama_tensor_get_type`` in its ``src/llama-quant.cpp``, for dense
models and with an importance matrix, which bitquilt always has. mlx-lm's are those of
``mlx_lm.convert``: one type throughout, or ``mixed_quant_predicate_builder``'s two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bitquilt import qtypes
from bitquilt.allocation.recipe import require_fit
from bitquilt.errors import UserError
from bitquilt.models.architectures import architecture_of
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.targets import get_target


@dataclass(frozen=True)
class Block:
    """What the rules depend on: which block, of how many, how much keys and values are shared."""

    layer: int
    layers: int
    sharing: int
    """Query heads per key and value head."""


Where = Callable[[Block], bool]


def everywhere(block: Block) -> bool:
    """Accept every block."""
    return True


def first(count: int) -> Where:
    """Return a test for the first ``count`` blocks."""
    return lambda block: block.layer < count


def first_part(parts: int) -> Where:
    """Return a test for the first 1/parts of the blocks, rounded down."""
    return lambda block: block.layer < block.layers // parts


def widely_shared(block: Block) -> bool:
    """Accept a block where four or more query heads share a key and value head: v is small."""
    return block.sharing >= 4


def more_bits(block: Block) -> bool:
    """Accept the first and the last eighth of the blocks, and every third one between them."""
    eighth = block.layers // 8
    inside = block.layer - eighth
    return inside < 0 or block.layer >= 7 * block.layers // 8 or inside % 3 == 2


@dataclass(frozen=True)
class PresetRule:
    """One of llama.cpp's presets: a type, and exceptions of which the first that applies wins."""

    base: str
    exceptions: tuple[tuple[str, Where, str], ...] = ()
    """Each is a matrix within the block, the blocks that it holds for, and the type."""


ATTN_V, ATTN_OUT, FFN_DOWN = "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"

LLAMA_CPP: dict[str, PresetRule] = {
    "Q2_K": PresetRule(
        "Q2_K",
        (
            (ATTN_V, widely_shared, "Q4_K"),
            (ATTN_V, everywhere, "Q3_K"),
            (ATTN_OUT, everywhere, "Q3_K"),
            (FFN_DOWN, everywhere, "Q3_K"),
        ),
    ),
    "Q3_K_S": PresetRule("Q3_K"),
    "Q3_K_M": PresetRule(
        "Q3_K",
        (
            (ATTN_V, first(2), "Q5_K"),
            (ATTN_V, everywhere, "Q4_K"),
            (ATTN_OUT, everywhere, "Q4_K"),
            (FFN_DOWN, first_part(16), "Q5_K"),
            (FFN_DOWN, everywhere, "Q4_K"),
        ),
    ),
    "Q3_K_L": PresetRule(
        "Q3_K",
        (
            (ATTN_V, everywhere, "Q5_K"),
            (ATTN_OUT, everywhere, "Q5_K"),
            (FFN_DOWN, everywhere, "Q5_K"),
        ),
    ),
    "IQ4_XS": PresetRule("IQ4_XS", ((ATTN_V, widely_shared, "Q5_K"),)),
    "Q4_0": PresetRule("Q4_0", ((FFN_DOWN, first_part(8), "Q4_1"),)),
    "IQ4_NL": PresetRule("IQ4_NL", ((ATTN_V, widely_shared, "Q5_K"),)),
    "Q4_K_S": PresetRule("Q4_K", ((ATTN_V, first(4), "Q5_K"), (FFN_DOWN, first_part(8), "Q5_K"))),
    "Q4_K_M": PresetRule("Q4_K", ((ATTN_V, more_bits, "Q6_K"), (FFN_DOWN, more_bits, "Q6_K"))),
    "Q5_K_S": PresetRule("Q5_K"),
    "Q5_K_M": PresetRule("Q5_K", ((ATTN_V, more_bits, "Q6_K"), (FFN_DOWN, more_bits, "Q6_K"))),
    "Q6_K": PresetRule("Q6_K"),
    "Q8_0": PresetRule("Q8_0"),
}

FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Block of 256 → block of 32, for rows that 256 does not divide (``tensor_type_fallback``)."""

MLX_MIXED = {
    "mixed_2_6": ("2bit-g64", "6bit-g64"),
    "mixed_3_4": ("3bit-g64", "4bit-g64"),
    "mixed_3_6": ("3bit-g64", "6bit-g64"),
    "mixed_4_6": ("4bit-g64", "6bit-g64"),
}
"""Preset → type of most matrices, type of the head and of v_proj and down_proj where
:func:`more_bits` says so."""


def preset_names(target: str) -> list[str]:
    """Return the presets of a target by its name, roughly by size."""
    return list(_presets(target))


def preset(name: str, checkpoint: Checkpoint, target: str) -> dict[str, str]:
    """Return the allocation that a preset gives a model.

    Args:
        name: one of :func:`preset_names`.
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
    for part, where, other in rule.exceptions:
        if module.endswith(part) and where(block):
            qtype = other
            break
    is_70b = architecture_of(checkpoint.config).is_70b
    if module.endswith(ATTN_V) and qtype in ("Q3_K", "Q4_K") and is_70b(checkpoint.config):
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
    raised = module.endswith((ATTN_V, FFN_DOWN)) and more_bits(_block(checkpoint, module))
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
