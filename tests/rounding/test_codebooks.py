"""The search over codebooks, against one through every pattern and every sign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitquilt.qtypes.bits import digits
from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.qtypes.qtype import registered
from bitquilt.rounding.codebooks import choose_signs, masks_of, nearest_patterns

QTYPES = [qtype for qtype in registered().values() if isinstance(qtype, Codebook)]
WHOLE = [qtype for qtype in QTYPES if qtype.name.startswith(("IQ1", "IQ2"))]
"""Types whose patterns cover all eight weights."""


def sample(qtype: Codebook, seed: int, count: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Targets [8, V], steps [V] and a metric [8, 8] that ties neighbours together."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randn(8, count, generator=random)
    steps = (1.8 + torch.rand(count, generator=random)) / codebook(qtype.name).max()
    inputs = torch.randn(64, 8, generator=random) + 0.3 * torch.randn(64, 1, generator=random)
    hessian = inputs.T @ inputs / 64
    return targets, steps, torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)


def search(qtype: Codebook, *of_one_input: Tensor) -> list[Tensor]:
    """Codes, sign masks and levels for targets, steps, metric and perhaps parts of one input."""
    return [part[0] for part in nearest_patterns(qtype, *(each[None] for each in of_one_input))]


def cost(triangle: Tensor, miss: Tensor) -> Tensor:
    return (triangle.T @ miss).square().sum(0)


def least(qtype: Codebook, target: Tensor, step: Tensor, triangle: Tensor, part: int = 0) -> Tensor:
    """The cost of the best of a part's patterns, and of all signs, for one vector [8]."""
    patterns = codebook(qtype.name).chunk(qtype.parts)[part]
    if not qtype.signed:
        return cost(triangle, target.unsqueeze(1) - patterns.T * step).min()
    masks = torch.arange(256, dtype=torch.uint8)
    signs = 1 - 2 * digits(masks.unsqueeze(1), 1).float()
    if qtype.even_signs:
        signs = signs[signs.prod(1) > 0]
    # [P, 1, 8] and [masks, 8] -> [8, P masks]
    levels = (patterns.unsqueeze(1) * signs).flatten(0, 1).T * step
    return cost(triangle, target.unsqueeze(1) - levels).min()


@pytest.mark.parametrize("qtype", WHOLE, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("tied", [False, True])
def test_near_the_best_of_all_patterns(qtype: Codebook, tied: bool) -> None:
    targets, steps, triangle = sample(qtype, 0)
    if not tied:
        triangle = torch.diag(triangle.diagonal())
    levels = search(qtype, targets, steps, triangle)[2]
    found = cost(triangle, targets - levels)
    best = torch.stack(
        [least(qtype, t, s, triangle) for t, s in zip(targets.T, steps, strict=True)]
    )
    assert (found >= best * (1 - 1e-5)).all()
    assert found.sum() < (1.06 if tied else 1.02) * best.sum()


def test_each_vector_takes_patterns_of_the_part_that_is_asked_for() -> None:
    qtype = next(qtype for qtype in QTYPES if qtype.parts == 2)
    targets, steps, triangle = sample(qtype, 3)
    asked = torch.arange(len(steps)) % 2
    codes, _, levels = search(qtype, targets, steps, triangle, asked.float())
    assert torch.equal(codes[0] // 2048, asked.to(codes.dtype))
    vectors = zip(targets.T, steps, asked.tolist(), strict=True)
    best = torch.stack([least(qtype, t, s, triangle, part) for t, s, part in vectors])
    assert cost(triangle, targets - levels).sum() < 1.06 * best.sum()


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_levels_are_what_codes_and_masks_say(qtype: Codebook) -> None:
    targets, steps, triangle = sample(qtype, 1, 200)
    codes, masks, levels = search(qtype, targets, steps, triangle)
    # [H, V] -> [V, H, m] -> [8, V]
    patterns = codebook(qtype.name)[codes.T.long()].flatten(1).T
    signs = 1 - 2 * digits(masks.unsqueeze(1), 1).float().T
    assert torch.equal(levels, patterns * (signs * steps))
    if qtype.even_signs:
        assert (signs.prod(0) == 1).all()


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_what_is_on_the_qtype_stays(qtype: Codebook) -> None:
    targets, steps, triangle = sample(qtype, 2, 100)
    codes, masks, levels = search(qtype, targets, steps, triangle)
    again = search(qtype, levels, steps, torch.eye(8))
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], masks)


def test_zeros_have_codes() -> None:
    for qtype in QTYPES:
        for target, step in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
            codes, _, _ = search(
                qtype, torch.full((8, 3), target), torch.full((3,), step), torch.eye(8)
            )
            assert (codes >= 0).all()
            assert (codes < len(codebook(qtype.name))).all()


def test_the_cheapest_sign_turns() -> None:
    qtype = next(qtype for qtype in QTYPES if qtype.even_signs)
    vector = torch.tensor([[-1.0, 2, 3, 0.1, 5, 6, 7, 8]])
    signs = choose_signs(qtype, vector, torch.ones(8), torch.tensor([[0.1]]))
    assert signs.tolist() == [[-1, 1, 1, -1, 1, 1, 1, 1]]
    assert masks_of(signs).tolist() == [0b1001]
