"""GPTQ's and AWQ's matrices are read as those who quantized them mean it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import _transform_awq_weights
from safetensors.torch import load_file

from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.inspection import inspect
from tests.models.sources.quantized.checkpoints import Q, StoredParts, quantized, words_of

Make = Callable[[torch.Tensor], StoredParts]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def random_parts(bits: int, minus_one: int, shuffled: bool, wanted: list[np.ndarray]) -> Make:
    """Codes, zeros and scales of GPTQ; what every weight is, by a loop over all."""
    random = np.random.default_rng(0)

    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = weight.shape
        groups = np.arange(columns) // 32
        if shuffled:
            random.shuffle(groups)
        codes = random.integers(0, 1 << bits, (rows, columns))
        zeros = random.integers(1, 1 << bits, (columns // 32, rows))
        scales = random.random((columns // 32, rows), np.float32).astype(np.float16)
        wanted.append(np.zeros((rows, columns), np.float32))
        for row in range(rows):
            for column, group in enumerate(groups):
                steps = int(codes[row, column]) - int(zeros[group, row])
                wanted[-1][row, column] = steps * np.float32(scales[group, row])
        return {
            "qweight": words_of(codes, bits).T,
            "qzeros": words_of(zeros - minus_one, bits),
            "scales": torch.from_numpy(scales),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
            "bias": torch.zeros(rows),  # as AutoGPTQ stores it for models that have none
        }

    return make


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_of_every_width_and_both_formats(version: str, bits: int, tmp_path: Path) -> None:
    wanted: list[np.ndarray] = []
    make = random_parts(bits, version == "gptq", bits == 3, wanted)
    checkpoint = open_checkpoint(quantized(tmp_path, GPTQ | {"checkpoint_format": version}, make))
    found = [checkpoint.load(name) for name in checkpoint.shapes if "proj.weight" in name]
    assert len(found) == len(wanted) == 7
    for one in found:
        assert any(one.shape == w.shape and np.array_equal(one.numpy(), w) for w in wanted)
    assert checkpoint.source_types[f"INT{bits}"] > 0


def test_groups_follow_the_columns_where_nothing_says_which_they_are(tmp_path: Path) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = weight.shape
        return {
            "qweight": words_of(np.full((rows, columns), 9), 4).T,
            "qzeros": words_of(np.full((2, rows), 7), 4),
            "scales": torch.tensor([[1.0], [2.0]]).repeat(1, rows).half(),
        }

    weight = open_checkpoint(quantized(tmp_path, GPTQ, make)).load(Q)
    assert weight[0, [0, 63, 64, 127]].tolist() == [1.0, 1.0, 2.0, 2.0]


def random_awq(weight: torch.Tensor) -> StoredParts:
    generator = torch.Generator().manual_seed(weight.shape[0])
    rows, columns = weight.shape

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)

    return {
        "qweight": words(columns, rows // 8),
        "qzeros": words(columns // 32, rows // 8),
        "scales": torch.rand(columns // 32, rows, generator=generator).half(),
    }


def test_awq_is_read_as_mlx_lm_reads_it(tmp_path: Path) -> None:
    directory = quantized(tmp_path, AWQ, random_awq)
    stored = load_file(directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    names = [name for name in checkpoint.shapes if "proj.weight" in name]
    for name in names:
        module = name.removesuffix(".weight")
        parts = {
            f"a.{part}": mx.array(stored[f"{module}.{part}"].numpy())
            for part in ("qweight", "qzeros", "scales")
        }
        parts["a.qweight"], parts["a.qzeros"] = (
            parts[part].view(mx.uint32) for part in ("a.qweight", "a.qzeros")
        )
        own, _ = _transform_awq_weights(parts, AWQ)
        wanted = mx.dequantize(
            own["a.weight"], own["a.scales"], own["a.biases"], group_size=32, bits=4
        )
        found = checkpoint.load(name).numpy()
        assert np.allclose(found, np.array(wanted.astype(mx.float32)), atol=0.01)
        assert found.max() > 10


def test_the_source_is_said_to_be_quantized(tmp_path: Path) -> None:
    (said,) = [
        finding
        for finding in inspect(str(quantized(tmp_path, AWQ, random_awq))).findings
        if finding.subject == "quantization"
    ]
    assert "INT4" in said.message


def without(part: str) -> Make:
    return lambda weight: {k: t for k, t in random_awq(weight).items() if k != part}


def narrower(weight: torch.Tensor) -> StoredParts:
    parts = random_awq(weight)
    return parts | {"qzeros": parts["qzeros"][:, :-1]}


@pytest.mark.parametrize(
    ("settings", "make", "words"),
    [
        (AWQ | {"version": "gemv"}, random_awq, "AWQ packed the weights as version gemv, and"),
        (GPTQ | {"checkpoint_format": "marlin"}, random_awq, "packed .* checkpoint_format marlin"),
        (GPTQ, without("scales"), "it has qweight, qzeros.; give the original"),
        (GPTQ, random_awq, "do not fit|is quantized in a way|config.json asks for"),
        (AWQ, narrower, "qweight in .* and its scales, .* do not fit together"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    settings: dict[str, object], make: Make, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        open_checkpoint(quantized(tmp_path, settings, make)).load(Q)


def test_a_bias_without_a_place_is_left_out_only_where_it_adds_nothing(tmp_path: Path) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        return random_awq(weight) | {"bias": torch.ones(weight.shape[0])}

    with pytest.raises(UserError, match=r"bias .* has no place in a qwen3 model"):
        open_checkpoint(quantized(tmp_path, AWQ, make))
