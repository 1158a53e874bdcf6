"""How far moments of output gradients are trusted, against what feedback costs on left-out text."""

import pytest
import torch

from bitquilt.calibration.output_shrinkage import (
    TRIED_OUTPUT_SHARES,
    USUAL_OUTPUT_SHARE,
    best_output_share,
    kept_error,
    row_chunks,
    shrunk_outputs,
)
from bitquilt.calibration.shrinkage import FOLDS, FoldSum, Moments, shrink_
from bitquilt.rounding.output_feedback import OUTPUT_DAMPING, OutputFactor

ROWS = 96


def mixing(seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, ROWS, generator=generator) * torch.linspace(2, 0.1, ROWS)[:, None]


def moment(tokens, seed, mixed=None):
    """The second moment of so many gradients of one population."""
    g = torch.randn(tokens, ROWS, generator=torch.Generator().manual_seed(seed))
    g = g if mixed is None else g @ mixed
    return g.T @ g / tokens


def fold(tokens, seed, mixed=None):
    return FoldSum(tokens * moment(tokens, seed, mixed), float(tokens))


def kept(moments, share, left_out):
    """What the rounder's own links keep of the error, chunk by chunk, in closed form.

    Z = 1 for each row in turn, in double precision: E follows from its links and no other.
    """
    damped = shrink_(moments.clone(), share)
    damped.diagonal().add_(OUTPUT_DAMPING * damped.diagonal().mean())
    outputs, other = OutputFactor(torch.arange(ROWS), damped), left_out.double()
    errors = torch.eye(ROWS, dtype=torch.float64)  # a column for each row that errs
    for own, link in zip(outputs.chunks, outputs.forward, strict=True):
        errors[own] += link.double() @ errors[: own.start]
    return float(((other @ errors) * errors).sum() / other.trace())


def by_importance(*moments):
    """Put rows in the order of rounding, the most important first."""
    order = torch.stack([one.diagonal() for one in moments]).sum(0).argsort(descending=True)
    return [one[order][:, order] for one in moments]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_error_is_that_of_the_rounders_links(share):
    own, other = by_importance(moment(300, 1, mixing()), moment(300, 2, mixing()))
    probes = torch.linalg.cholesky(other) * ROWS**0.5  # R probes
    assert kept_error(own, share, probes) == pytest.approx(kept(own, share, other), rel=1e-3)


@pytest.mark.parametrize(("tokens", "apart"), [(50, 0.0), (200, 0.0), (400, 0.7)])
def test_the_share_has_the_least_error_in_its_worst_fold(tokens, apart):
    """Brute force over all shares and folds, by the rounder's links."""
    folds = [fold(tokens, seed, mixing() + apart * mixing(100 + seed)) for seed in range(FOLDS)]
    means = by_importance(*(one.total / one.weight for one in folds))
    worst = {1.0: 1.0}
    for share in TRIED_OUTPUT_SHARES:
        parts = []
        for i, left_out in enumerate(means):
            others = torch.stack([one for j, one in enumerate(means) if j != i]).mean(0)
            parts.append(kept(others, share, left_out))
        worst[share] = max(parts)
    share = best_output_share(folds)
    assert worst[share] <= 1.01 * min(worst.values())


def test_much_text_of_one_kind_is_trusted():
    assert best_output_share([fold(20_000, seed, mixing()) for seed in range(FOLDS)]) == 0.0


def test_rows_that_hang_together_by_chance_are_rounded_alone():
    assert best_output_share([fold(ROWS // 2, seed) for seed in range(FOLDS)]) == 1.0


def test_one_fold_that_loses_is_enough_for_rows_to_be_rounded_alone():
    """The others gain by what they share; the mean over folds would keep it."""
    alike, unlike = mixing(), mixing(8).flip(0, 1)
    folds = [fold(2_000, 0, alike), fold(2_000, 1, alike), fold(2_000, 2, unlike)]
    assert best_output_share(folds[:2]) < 0.3
    assert best_output_share(folds) > best_output_share(folds[:2])


def test_one_fold_alone_cannot_tell():
    assert best_output_share([fold(100, 0)]) == USUAL_OUTPUT_SHARE


def test_outputs_that_nothing_depends_on_have_no_feedback():
    assert best_output_share([FoldSum(torch.zeros(ROWS, ROWS), 1.0)] * FOLDS) == 1.0


def test_folds_sum_to_the_whole():
    gradients = torch.randn(90, ROWS) @ mixing()
    moments = Moments(gradients)
    for number, part in enumerate(gradients.split(30)):
        moments.sums[number] += part.T @ part
        moments.weights[number] += len(part)
    found, share = shrunk_outputs(moments)
    whole = gradients.T @ gradients / 90
    torch.testing.assert_close(found, shrink_(whole, share), rtol=1e-4, atol=1e-3)


def test_a_matrix_of_one_chunk_has_all_rows_in_it():
    assert row_chunks(63) == [slice(0, 63)]
