"""Plans: what the user may ask for, sizes that are met, and the published breakdown."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

import bitquilt
from bitquilt import PlanConfig, QuantizeConfig, qtypes
from bitquilt.allocation import sensitivity
from bitquilt.allocation.plan import make_plan, plan, requests
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace
from bitquilt.errors import UserError
from bitquilt.models import from_config, open_checkpoint
from bitquilt.models.sources import resolve
from bitquilt.rounding.nearest import fit
from bitquilt.targets import GGUF, MLX, get_target, parse_targets
from tests.factories import tiny_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
MOBILELLM = EXAMPLES / "mobilellm-r1-950m" / "config.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=1)


@pytest.fixture
def recipe(tmp_path):
    def write(**content):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(content))
        return path

    return write


def mobilellm_140m():
    """Its rows of 576 fit no type of 256."""
    config = json.loads(MOBILELLM.read_text())
    config |= {"num_hidden_layers": 15, "num_attention_heads": 9, "num_key_value_heads": 3}
    return from_config(config | {"hidden_size": 576, "intermediate_size_mlp": 2048}, "140M")


@pytest.mark.parametrize(
    ("model", "target", "bits"),
    [
        *product(["950M"], ["gguf", "mlx"], [3.0, 4.25, 4.5, 6.0, 8.0, 12.0]),
        *product(["140M"], ["gguf"], [4.5, 4.8, 6.0, 8.0]),
        *product(["140M"], ["mlx"], [3.0, 4.25, 4.5, 6.0]),
    ],
)
def test_tensors_come_within_half_a_percent_of_their_bits(model, target, bits):
    checkpoint = open_checkpoint(MOBILELLM) if model == "950M" else mobilellm_140m()
    planned = make_plan(checkpoint, requests(PlanConfig(bits=bits))[0], get_target(target))
    assert 0.995 * bits <= planned.bits <= bits
    norms = planned.layout.norm_bytes
    most = (norms + planned.space.capacity) * 8 / checkpoint.weights  # of any mix
    assert planned.bits <= most <= bits


@pytest.mark.parametrize(
    ("said", "asked", "weights", "corrected"),
    [
        (None, {}, 511_999_999, True),
        (None, {}, 512_000_000, False),
        (False, {}, 1, False),
        (True, {}, 512_000_000, True),
        (None, {"bits": 4.5}, 1, False),
        (True, {"bits": 4.5}, 1, True),
        (False, {"sequential": True}, 1, True),
        (True, {"sequential": False}, 1, False),
        (None, {"rounding": "gptq"}, 1, False),
        (None, {"cells": ["cells"]}, 1, False),
    ],
)
def test_who_says_whether_blocks_are_corrected(
    recipe, monkeypatch, said, asked, weights, corrected
):
    """The option, then the recipe; else small models are that nothing else is asked for."""
    monkeypatch.setattr("bitquilt.allocation.plan.offered_types", lambda _: {})
    path = recipe(default="Q4_K", **({} if said is None else {"sequential": said}))
    (request,) = requests(QuantizeConfig(recipe=path, **asked))
    assert request.corrects(SimpleNamespace(weights=weights)) is corrected
    assert not requests(PlanConfig(recipe=recipe(default="Q4_K")))[0].has_time


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_a_hub_id_is_planned_to_the_byte_without_its_weights(tiny, tmp_path, monkeypatch, target):
    (weights,) = tiny.glob("*.safetensors")
    described = tmp_path / "tiny"
    shutil.copytree(tiny, described, ignore=lambda *_: [weights.name])
    # an earlier download that stopped left the index and no weights
    (described / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    found = []
    for directory in (tiny, described):
        monkeypatch.setattr(resolve, "snapshot_download", lambda *_, to=directory, **__: str(to))
        found += plan(f"owner/{tiny.name}", bits=4.7, to=target)
    assert found[0] == found[1]


def test_a_size_is_met_like_bits(tiny):
    plans = plan(tiny, size="500kB", to="both")
    assert [p.target for p in plans] == [GGUF, MLX]
    for one in plans:
        assert 497_500 <= one.layout.total_bytes <= 500_000


@pytest.mark.parametrize("name", ["gguf", "mlx"])
def test_the_size_is_final_whatever_is_measured(tiny, tmp_path, name):
    """A mix of another size, as a search may find one, is written at the announced size."""
    checkpoint, target = open_checkpoint(tiny), get_target(name)
    planned = make_plan(checkpoint, requests(PlanConfig(bits=4.7))[0], target)
    guess = AllocationSpace.of(sensitivity.prior(checkpoint, planned.space.candidate_sets))
    opposite = guess.rescored([-scores for scores in guess.scores])
    other = guess.allocation(solve(opposite, planned.space.capacity))
    padding = planned.layout.total_bytes - target.plan(checkpoint, other).total_bytes
    assert padding > 0

    def packed(module, qtype):
        on = qtypes.get(qtype)
        return on.pack(fit(on, checkpoint.load(f"{module}.weight"), None))

    path = tmp_path / "model.gguf"
    target.write(checkpoint, other, packed, path, "{}", padding)
    target.check(path, checkpoint, other, packed)
    files = path.rglob("*") if path.is_dir() else [path]
    assert sum(file.stat().st_size for file in files) == planned.layout.total_bytes


def test_pins_hold_under_a_budget(tiny, recipe):
    mine = recipe(pin={"token_embd": "Q8_0", "blk.0.attn_v": "F32"})
    (planned,) = plan(tiny, bits=6, recipe=mine)
    assert planned.allocation["model.embed_tokens"] == "Q8_0"
    assert planned.allocation["model.layers.0.self_attn.v_proj"] == "F32"
    assert planned.bits <= 6


def test_rules_are_no_pins_under_a_budget(tiny, recipe):
    (planned,) = plan(tiny, bits=3, recipe=recipe(default="Q8_0"))
    assert "Q8_0" not in planned.allocation.values()


@pytest.mark.parametrize(
    ("target", "preset", "embedding"), [("gguf", "Q4_K_M", "Q6_K"), ("mlx", "4bit-g64", "4bit-g64")]
)
def test_presets(tiny, target, preset, embedding):
    (planned,) = plan(tiny, recipe=preset, to=target)
    assert planned.space is None
    assert planned.allocation["model.embed_tokens"] == embedding
    assert all(target in qtypes.get(qtype).targets for qtype in planned.allocation.values())


def test_the_published_breakdown():
    """752 MiB of embedding, 358 to 359 MiB of 4-bit codes, 45 MiB of scales and biases."""
    recipe = EXAMPLES / "mlx-published-950m.json"
    (planned,) = plan(MOBILELLM, recipe=recipe, to="mlx")
    embedding, codes, scales = (
        planned.layout.breakdown[part] / 2**20 for part in ("embedding", "codes", "scales")
    )
    assert round(embedding) == 752
    assert 358 < codes < 359.5
    assert round(scales) == 45


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "how small"),
        ({"bits": 4, "size": "1MB"}, "both set the size"),
        ({"bits": 0}, "^bits is 0; give a number that is greater than 0 and at most 32"),
        ({"bits": -1}, "^bits is -1; give a number that is greater than 0"),
        (
            {"bits": float("nan")},
            "^bits is nan; give a number that is greater than 0 and",
        ),
        ({"bits": 33}, "^bits is 33; give"),
        ({"size": "big"}, "is not a size"),
        ({"bits": 4, "recipe": "Q4_K_M"}, "decides the size itself"),
        ({"recipe": "Q4_KM"}, "neither a recipe file .* presets are .*Q4_K_M"),
        ({"recipe": "Q4_K_N"}, r"; did you mean Q4_K_[SM]\? The presets are (?!.*4bit-g64)"),
        ({"recipe": "q4-k-m", "to": "both"}, r"; did you mean Q4_K_M\? The presets are .*4bit-g64"),
        ({"recipe": "4BIT_g64"}, r"^there is no preset 4BIT_g64; 4bit-g64 is a preset of MLX, not"),
        ({"recipe": "4bit-g64"}, r"^4bit-g64 is a preset of MLX, not of GGUF; use to='mlx', or "),
        ({"recipe": "small"}, "nor a preset; the presets are .*Q4_K_M.*[^?]$"),
        ({"recipe": "none.json"}, "the recipe none.json does not exist; check the path"),
        ({"bits": 4, "to": "onnx"}, "^to is 'onnx', which is not one of gguf, mlx, both"),
        (
            {"recipe": "Q4_K_M", "to": "mlx"},
            "a preset of GGUF, not of MLX; use to='gguf'",
        ),
        ({"recipe": "4bit-g64", "to": "both"}, 'no preset "4bit-g64" for gguf'),
    ],
)
def test_nonsense_is_refused(tiny, asked, words):
    with pytest.raises(UserError, match=words):
        plan(tiny, **asked)


@pytest.mark.parametrize("target", ["gguf", "mlx"])
@pytest.mark.parametrize("asked", [{"size": "60kB"}, {"size": "1GB"}], ids=str)
def test_what_is_offered_instead_of_an_impossible_budget_is_possible(tiny, asked, target):
    with pytest.raises(UserError, match="is too") as why:
        plan(tiny, to=target, **asked)
    size, offered = re.search(r"size='(\d+)B' or bits=([\d.]+)", str(why.value)).groups()
    (by_size,) = plan(tiny, size=size, to=target)
    assert by_size.layout.total_bytes == int(size)
    plan(tiny, bits=float(offered), to=target)


def test_targets():
    assert parse_targets("both") == [GGUF, MLX]
    assert parse_targets("mlx") == [MLX]


def test_rules_beside_a_budget_are_said_to_have_no_effect(tiny, recipe):
    (planned,) = plan(tiny, bits=6, recipe=recipe(default="Q4_K", pin={"token_embd": "Q8_0"}))
    assert "only the pins" in planned.notes[0]
    assert plan(tiny, bits=6, recipe=recipe(pin={"token_embd": "Q8_0"}))[0].notes == ()


def test_plan_can_be_asked_again():
    """The module of the same name would take the function's place after the first call."""
    assert callable(bitquilt.plan)
    assert callable(bitquilt.quantize)
    assert callable(bitquilt.plan)


@pytest.mark.parametrize(("size", "bits"), [("12GB", 4.0), ("16GB", 5.4)])
def test_magistral_small_is_planned_from_its_config_alone(
    size: str, bits: float, tmp_path: Path
) -> None:
    """The wrapper as published (2509), whose language model has 23.57 billion weights."""
    text = {
        **{"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768},
        **{"num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"head_dim": 128, "vocab_size": 131072, "max_position_embeddings": 131072},
        **{"rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": None, "hidden_act": "silu"},
    }
    config = {
        "model_type": "mistral3",
        "text_config": text,
        "vision_config": {"model_type": "pixtral"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (planned,) = plan(tmp_path / "config.json", size=size)
    weights = 2 * 131072 * 5120 + 40 * (5120 * (2 * 4096 + 2 * 1024 + 3 * 32768) + 2 * 5120) + 5120
    assert planned.layout.weights == weights == 23_572_403_200
    wanted = int(size.removesuffix("GB")) * 10**9
    assert wanted * 0.9999 < planned.layout.total_bytes <= wanted
    checkpoint = open_checkpoint(tmp_path / "config.json")
    for module, qtype in planned.allocation.items():
        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[qtype]]
        rows, columns = checkpoint.matrices[module]
        assert planned.layout.tensor_bytes[module] == rows * columns // block * nbytes
    assert planned.bits == pytest.approx(bits, abs=0.1)
