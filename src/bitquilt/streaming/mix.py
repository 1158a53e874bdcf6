"""Which type each matrix gets: by a budget, by one of llama.cpp's presets, or by a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitquilt.allocation.knapsack import best_choices, largest_nbytes, smallest_nbytes
from bitquilt.allocation.llama_cpp import (
    ATTN_OUT,
    ATTN_QKV,
    ATTN_V,
    FALLBACK,
    FFN_DOWN,
    LLAMA_CPP,
    Block,
)
from bitquilt.errors import UserError
from bitquilt.gguf.container import aligned
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.streaming import ggml
from bitquilt.streaming.importance import EMBEDDING, OUTPUT
from bitquilt.streaming.source import GgufSource, SourceMatrix

if TYPE_CHECKING:
    from bitquilt.allocation.recipe import QtypeChoice, Recipe
    from bitquilt.targets.base import Target

Mix = Mapping[str, GgmlType]
"""Name of every matrix → its type."""
NatsOfTypes = Mapping[str, Mapping[GgmlType, float]]
"""Name of a matrix → the nats per token that each of its types is predicted to cost."""

WIDE_TYPES = tuple(
    GgmlType[name]
    for name in (
        *("IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
        *("IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    )
)
"""The types that a budget's mix may have where rows take super-blocks of 256."""
NARROW_TYPES = tuple(GgmlType[name] for name in ("IQ4_NL", "Q5_0", "Q5_1", "Q8_0"))
"""Those where rows do not."""
REACH_BELOW, REACH_ABOVE, REACH_STEP = 1.6, 2.4, 0.5
"""How far from the budget's bits a type may be, and in which steps that widens if it must."""
KEYS, EXPERTS_OF_MIXTRAL, LAYERS_OF_70B = "attn_k", 8, 80
"""What llama.cpp's presets favour in Mixtral, and in models that it takes for a Llama 70B."""
_MIXTRAL_OUT = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")


def bits_of(kind: GgmlType) -> float:
    """Return the bits per weight of a type."""
    return 8 * ggml.row_bytes(kind, 256) / 256


def candidate_kinds(source: GgufSource, capacity: int, pins: Mix) -> dict[str, list[GgmlType]]:
    """Return the types that each matrix may have for all to fit in ``capacity`` bytes.

    They are those around the bits that the budget leaves; there is more of them where it must be.
    """
    matrices = source.matrices
    everything = {name: all_kinds(source, name, pins) for name in matrices}
    bits = 8 * capacity / sum(matrix.weights for matrix in matrices.values())
    reach = 0.0
    while True:
        low, high = bits - REACH_BELOW - reach, bits + REACH_ABOVE + reach
        found = {
            name: [kind for kind in kinds if low <= bits_of(kind) <= high]
            or [min(kinds, key=lambda kind: abs(bits_of(kind) - bits))]
            for name, kinds in everything.items()
        }
        sizes = _sizes(source, found)
        if smallest_nbytes(sizes) <= capacity <= largest_nbytes(sizes) or found == everything:
            return found
        reach += REACH_STEP


def all_kinds(source: GgufSource, name: str, pins: Mix) -> list[GgmlType]:
    """Return all types for a matrix, by size: at most its own type, in which it loses nothing."""
    matrix, own = source.matrices[name], source.tensors[name].type
    if name in pins:
        return [pins[name]]
    fitting = WIDE_TYPES if ggml.fits(WIDE_TYPES[0], matrix.columns) else NARROW_TYPES
    return [*(kind for kind in fitting if matrix.nbytes(kind) < matrix.nbytes(own)), own]


def _sizes(source: GgufSource, kinds: Mapping[str, Sequence[GgmlType]]) -> list[list[int]]:
    return [
        [aligned(source.matrices[name].nbytes(kind)) for kind in own] for name, own in kinds.items()
    ]


def best_mix(source: GgufSource, nats: NatsOfTypes, capacity: int) -> dict[str, GgmlType]:
    """Return the mix of least predicted cost within ``capacity`` bytes: the exact knapsack's.

    Raises:
        UserError: no mix is that small.
    """
    names = list(nats)
    kinds = {name: list(nats[name]) for name in names}
    costs = [np.array([nats[name][kind] for kind in kinds[name]]) for name in names]
    chosen = best_choices(costs, _sizes(source, kinds), capacity)
    return {name: kinds[name][index] for name, index in zip(names, chosen, strict=True)}


def preset_mix(source: GgufSource, preset: str) -> dict[str, GgmlType]:
    """Return the mix that llama-quantize gives a model, from names, shapes and the header alone."""
    counts = dict.fromkeys((ATTN_V, FFN_DOWN), 0)
    of_kind = {name: _kind(name) for name in source.matrices}
    attention = sum(kind == ATTN_V for kind in of_kind.values())
    layers = int(source.header.get("block_count", 0))
    experts = int(source.header.get("expert_count", 0))
    found = {}
    for name in sorted(source.matrices, key=_by_block):
        kind = of_kind[name]
        if kind in counts:
            layer, counts[kind] = counts[kind], counts[kind] + 1
            if kind == FFN_DOWN and experts > 1:
                layer = _by_block(name)[0]
        else:
            layer = 0
        block = Block(layer, attention if kind == ATTN_V else layers, _sharing(source))
        qtype = _preset_type(source, preset, name, kind, block, experts)
        if not ggml.fits(GgmlType[qtype], source.matrices[name].columns):
            qtype = FALLBACK.get(qtype, qtype)
        found[name] = GgmlType[qtype]
    return {name: found[name] for name in source.matrices}


def _preset_type(
    source: GgufSource, preset: str, name: str, kind: str, block: Block, experts: int
) -> str:
    rule = LLAMA_CPP[preset]
    embedding = name in (EMBEDDING, f"per_layer_{EMBEDDING}")
    if name == OUTPUT or (embedding and source.tied):
        fits = ggml.fits(GgmlType[rule.base], source.matrices[name].columns)
        return "Q8_0" if rule.base == "Q8_0" or not fits else "Q6_K"
    if embedding:
        return rule.base
    if experts == EXPERTS_OF_MIXTRAL and kind in (ATTN_V, KEYS):
        return "Q8_0"
    if experts == EXPERTS_OF_MIXTRAL and kind == ATTN_OUT:
        return "Q5_K" if preset in _MIXTRAL_OUT else rule.base
    applying = (other for part, where, other in rule.exceptions if part == kind and where(block))
    qtype = next(applying, rule.base)
    if kind == ATTN_V and qtype in ("Q3_K", "Q4_K"):
        return "Q5_K" if source.header.get("block_count") == LAYERS_OF_70B else qtype
    return qtype


def _kind(name: str) -> str:
    """What llama.cpp's rules know a matrix as: its ``tensor_get_category``."""
    if any(f"{part}.weight" in name for part in (ATTN_V, ATTN_QKV, "attn_kv_b")):
        return ATTN_V
    found = (part for part in (KEYS, ATTN_OUT) if f"{part}.weight" in name)
    return next(found, FFN_DOWN if FFN_DOWN in name else "")


def _by_block(name: str) -> tuple[int, str]:
    block = re.search(r"blk\.(\d+)\.", name)
    return (int(block[1]), name) if block else (-1, name)


def _sharing(source: GgufSource) -> int:
    """How many query heads share a key and value head, in the first block that has both."""
    heads = source.header.get("attention.head_count", 1)
    shared = source.header.get("attention.head_count_kv", heads)
    layers = zip(
        heads if isinstance(heads, list) else [heads] * 4096,
        shared if isinstance(shared, list) else [shared],
        strict=False,
    )
    return next((int(q) // int(kv) for q, kv in layers if q and kv), 1)


def recipe_mix(source: GgufSource, recipe: Recipe, target: Target) -> dict[str, GgmlType]:
    """Return the mix of a recipe, whose rules and pins go by the names of the file's tensors.

    Raises:
        UserError: a rule matches nothing, a pin names no matrix, or a matrix is left without a
            type or gets one that its rows cannot take.
    """
    pins = recipe_pins(source, recipe, target)
    for rule in recipe.rules:
        if not any(re.search(rule.match, name) for name in source.matrices):
            raise UserError(
                f'{recipe.where}: the rule "{rule.match}" matches no matrix of {source.name}; its '
                f"matrices have names like {next(iter(source.matrices))}"
            )
    found = {}
    for name, matrix in source.matrices.items():
        matching = (rule.qtype for rule in recipe.rules if re.search(rule.match, name))
        choice = next(matching, recipe.default)
        if name in pins:
            found[name] = pins[name]
        elif choice is not None:
            found[name] = _chosen(matrix, choice, recipe.where, target)
        else:
            raise UserError(
                f'{recipe.where} does not give {name} a type; add a "default", or ask for a size '
                "with --bits or --size"
            )
    return found


def recipe_pins(source: GgufSource, recipe: Recipe, target: Target) -> dict[str, GgmlType]:
    """Return the matrices whose type a recipe pins.

    Raises:
        UserError: a pin names no matrix, or its type is one that the rows cannot take.
    """
    found = {}
    for pin, choice in recipe.pin.items():
        name = next((n for n in (pin, f"{pin}.weight") if n in source.matrices), None)
        if name is None:
            raise UserError(
                f'{recipe.where} pins "{pin}", which is not a matrix of {source.name}; its '
                f"matrices have names like {next(iter(source.matrices))}"
            )
        found[name] = _chosen(source.matrices[name], choice, recipe.where, target)
    return found


def _chosen(matrix: SourceMatrix, choice: QtypeChoice, where: str, target: Target) -> GgmlType:
    name = choice if isinstance(choice, str) else choice.get(target.name)
    if name is None or name not in GgmlType.__members__:
        raise UserError(f"{where} has no type of {target} files for {matrix.name}; add one")
    kind = GgmlType[name]
    if not ggml.fits(kind, matrix.columns):
        raise UserError(
            f"{where} asks for {name} on {matrix.name}, whose rows of {matrix.columns} are not "
            f"whole blocks; choose one of {', '.join(k.name for k in NARROW_TYPES)}"
        )
    return kind
