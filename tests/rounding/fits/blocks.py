"""Blocks to round, random and real, with importance, and what a rounding costs on each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from transformers import AutoTokenizer, Llama4ForCausalLM

from bitquilt import demo
from bitquilt.qtypes.qtype import QuantType, Unpacked
from bitquilt.rounding.fits.family import fit_family
from tests.ggml import ggml_quantizes

SLACK = 1 + 1e-4
"""The fits compare sums of squares in float32."""


def random_blocks(size: int) -> tuple[Tensor, Tensor]:
    """1,008 blocks as a matrix [168, 6 size], 28 rows of each kind, and log-normal importance."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(6, 28, 6 * size, generator=generator)
    even = torch.rand(6, 28, 6 * size, generator=generator)
    blocks[1] = -even[1].log() * blocks[1].sign()  # Laplace
    blocks[2] /= torch.randn(28, 6 * size, 3, generator=generator).square().mean(-1).sqrt()
    blocks[3] = 2 * even[3] - 1
    blocks[4] += 2
    blocks[5] *= even[5] < 0.3
    importance = (1.5 * torch.randn(6 * size, generator=generator)).exp()
    return 0.02 * blocks.flatten(0, 1), importance / importance.mean()


def real_blocks(size: int) -> tuple[Tensor, Tensor]:
    """At least 200 blocks of the demo model's down projection, whose inputs are most uneven."""
    weight, importance = _down_projection()
    rows = -(-200 * size // weight.shape[1])
    return weight[:rows], importance / importance.mean()


@cache
def _down_projection() -> tuple[Tensor, Tensor]:
    """The weights [R, C], and the mean square of each input over a few problems."""
    model = Llama4ForCausalLM.from_pretrained(demo.path(), dtype=torch.float32)
    module = model.model.layers[3].feed_forward.down_proj
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    tokenizer = AutoTokenizer.from_pretrained(demo.path())
    text = "\n".join(problem["question"] for problem in demo.problems()[:20])
    with torch.no_grad():
        model(tokenizer(text, return_tensors="pt").input_ids)
    return module.weight.detach(), seen[0].square().mean(0)


def awkward_matrix(size: int) -> Tensor:
    """Blocks that trip quantizers: zero, constant, one outlier, tiny, far from zero, in ties."""
    weight = torch.randn(10, 2 * size, generator=torch.Generator().manual_seed(1))
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3, 5] = 1000
    weight[4] *= 1e-30
    weight[5] = 1 + weight[5] * 1e-4
    weight[6] = 0
    weight[6, 3] = -0.7
    weight[7] = (weight[7] * 4).round() / 4
    weight[8] *= 1e4
    weight[9, size:] = 0
    return weight


def errors(qtype: QuantType, fields: Unpacked, weight: Tensor, importance: Tensor) -> Tensor:
    """Weighted squared error by block, float64 [R, C / block]."""
    gap = (qtype.decode(fields).double() - weight).square() * importance
    return torch.unflatten(gap, 1, (-1, qtype.block)).sum(-1)


def ggml_fields(qtype: QuantType, weight: Tensor, importance: Tensor) -> Unpacked:
    """What ggml makes of the matrix with this importance."""
    octets = ggml_quantizes(qtype.name, weight.numpy(), importance.numpy())
    return qtype.unpack({"data": torch.from_numpy(octets)})


def check_fields(qtype: QuantType, fields: Unpacked) -> None:
    """They are finite, and packing loses nothing of them."""
    again = qtype.unpack(qtype.pack(fields))
    assert again.keys() == fields.keys()
    for name, field in fields.items():
        assert field.dtype == again[name].dtype
        assert torch.equal(field, again[name]), name
    assert qtype.decode(fields).isfinite().all()


def check_no_block_is_worse(
    qtype: QuantType,
    theirs: Callable[[QuantType, Tensor, Tensor], Unpacked],
    may_equal: bool = False,
) -> None:
    """Random and real blocks, each with its importance and with none: ours ≤ theirs in each.

    ``theirs`` makes fields of a type, a matrix and importance. ``may_equal`` is for types whose
    scales leave nothing to choose.
    """
    for weight, importance in (random_blocks(qtype.block), real_blocks(qtype.block)):
        for shares in (importance, torch.ones_like(importance)):
            fields = fit_family(qtype, weight, shares.expand_as(weight))
            check_fields(qtype, fields)
            ours = errors(qtype, fields, weight, shares)
            worst = errors(qtype, theirs(qtype, weight, shares), weight, shares)
            assert (ours <= worst * SLACK).all(), (ours / worst).max()
            assert may_equal or ours.sum() < worst.sum()


def check_awkward_blocks(qtype: QuantType, constant: float = 1e-5) -> None:
    """Finite fields that pack; no block costs more than all zeros would; zeros cost nothing.

    ``constant`` is the share of its squares that a constant block may cost.
    """
    weight = awkward_matrix(qtype.block)
    importance = torch.linspace(0.1, 1.9, weight.shape[1])
    fields = fit_family(qtype, weight, importance.expand_as(weight))
    check_fields(qtype, fields)
    error = errors(qtype, fields, weight, importance)
    nothing = torch.unflatten(weight.double().square() * importance, 1, (-1, qtype.block)).sum(-1)
    assert (error <= nothing * SLACK).all()
    assert error[0].sum() == 0
    assert (error[1:3] < constant * nothing[1:3]).all()
