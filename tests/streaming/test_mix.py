"""Mixes: presets against what llama.cpp's own quantizer answered, and budgets against a search
through all mixes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import GGMLQuantizationType as GgmlType

from bitquilt.allocation.llama_cpp import LLAMA_CPP
from bitquilt.errors import UserError
from bitquilt.gguf.container import aligned
from bitquilt.models.architectures import architecture_of
from bitquilt.streaming.mix import best_mix, candidate_kinds, preset_mix
from bitquilt.streaming.source import GgufSource, SourceMatrix
from tests.allocation.test_presets import ANSWERS, expand, model_like
from tests.streaming.models import tensors, write_model


def source_like(answer: dict[str, Any]) -> Any:
    """A source of the shapes of a model that llama-quantize was asked about."""
    checkpoint = model_like(answer)
    name = architecture_of(checkpoint.config).gguf_name
    keys = {
        "block_count": checkpoint.layers,
        "attention.head_count": checkpoint.config["num_attention_heads"],
        "attention.head_count_kv": checkpoint.config["num_key_value_heads"],
    }
    return SimpleNamespace(
        matrices={
            f"{name(module)}.weight": SourceMatrix(f"{name(module)}.weight", 1, *shape)
            for module, shape in checkpoint.matrices.items()
        },
        header=SimpleNamespace(get=lambda key, default=None: keys.get(key, default)),
        tied=checkpoint.tied,
        of=lambda module: f"{name(module)}.weight",
    )


@pytest.mark.parametrize("preset", LLAMA_CPP)
@pytest.mark.parametrize("model", ANSWERS)
def test_presets_choose_as_llama_quantize_does(model: str, preset: str) -> None:
    source = source_like(ANSWERS[model])
    expected = expand(ANSWERS[model]["types"][preset])
    found = preset_mix(source, preset)
    assert {n: kind.name for n, kind in found.items()} == {
        source.of(module): qtype for module, qtype in expected.items()
    }


def test_mixtral_keeps_its_small_matrices_large() -> None:
    """Of a model of eight experts: rules that no dense model shows (``n_expert == 8``)."""
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down_exps", "ffn_up_exps")
    keys = {"block_count": 16, "expert_count": 8, "attention.head_count": [32] * 16}
    source: Any = SimpleNamespace(
        matrices={
            f"blk.{n}.{name}.weight": SourceMatrix("", 8 if "exps" in name else 1, 256, 256)
            for n in range(16)
            for name in names
        },
        header=SimpleNamespace(get=lambda key, default=None: keys.get(key, default)),
        tied=False,
    )
    found = preset_mix(source, "Q3_K_M")
    assert [found[f"blk.3.{name}.weight"].name for name in names] == [
        *("Q3_K", "Q8_0", "Q8_0", "Q5_K", "Q4_K", "Q3_K")
    ]
    assert found["blk.0.ffn_down_exps.weight"].name == "Q5_K"  # the first sixteenth


@pytest.fixture
def source(tmp_path: Path) -> GgufSource:
    return GgufSource(write_model(tmp_path / "m.gguf", tensors(blocks=1)))


def test_the_best_mix_is_the_best_of_all(source: GgufSource) -> None:
    names = ["blk.0.attn_q.weight", "blk.0.ssm_out.weight", "blk.0.ffn_up_exps.weight"]
    names += ["token_embd.weight"]
    kinds = [GgmlType.IQ4_NL, GgmlType.Q5_0, GgmlType.Q8_0]
    nats = {
        name: {kind: (i + 1) ** 2 / (3**j + i) for j, kind in enumerate(kinds)}
        for i, name in enumerate(names)
    }

    def nbytes(mix: dict[str, GgmlType]) -> int:
        return sum(aligned(source.matrices[n].nbytes(k)) for n, k in mix.items())

    mixes = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(kinds, repeat=4)]
    for capacity in sorted({nbytes(mix) for mix in mixes})[::7]:
        fitting = [mix for mix in mixes if nbytes(mix) <= capacity]
        least = min(sum(nats[n][k] for n, k in mix.items()) for mix in fitting)
        found = best_mix(source, nats, capacity)
        assert nbytes(found) <= capacity
        assert sum(nats[n][k] for n, k in found.items()) == pytest.approx(least)
    with pytest.raises(UserError, match="no mix fits"):
        best_mix(source, nats, nbytes(dict.fromkeys(names, GgmlType.IQ4_NL)) - 1)


def test_candidates_reach_as_far_as_the_budget_needs(source: GgufSource) -> None:
    weights = sum(matrix.weights for matrix in source.matrices.values())
    for bits in (1.9, 3, 4.5, 6, 8, 12, 16):
        capacity = int(weights * bits / 8)
        found = candidate_kinds(source, capacity, {"output.weight": GgmlType.Q6_K})
        sizes = {n: [source.matrices[n].nbytes(k) for k in kinds] for n, kinds in found.items()}
        if bits > 2:
            assert sum(map(min, sizes.values())) <= capacity
        if bits < 16:
            assert sum(map(max, sizes.values())) >= capacity
        assert found["output.weight"] == [GgmlType.Q6_K]
        narrow = {kind.name for kind in found["blk.0.ssm_out.weight"]}
        assert narrow <= {"IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "BF16"}
