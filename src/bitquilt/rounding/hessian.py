"""Hessians: second moments of inputs, ordered, damped and factorized.

All matrices that read one input share its Hessian.

A rounding error E [R, C] costs E H Eᵀ per row. With H = U Uᵀ, U upper triangular, that is the sum
over columns of (E U)²: column j sees only the errors made before it, which is what lets it make up
for them (LDLQ, Chee et al. 2023; the same as GPTQ, Frantar et al. 2022).

The same input of several layers goes through together: rounding a small matrix is thousands of
operations on a few numbers, whose fixed cost is then paid once for all of them.

Letters: L inputs of equal width, C columns, G = C / 8 groups of neighbouring columns, which
i-quants round as one vector; N rows of each input's matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from bitquilt.calibration.shrinkage import DAMPING
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Progress

COLUMN_GROUP = 8
COLUMN_BLOCK = 128
"""Columns between two large products: what lies between is done in small steps."""
MORE = 10.0
"""Damping is multiplied by this while a Hessian does not factorize."""
ATTEMPTS = 8
"""How often that is tried: a Hessian is a sum of squares, so a few times are plenty."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The factors of L inputs. All tensors are in the order of rounding, important groups first."""

    groups: Tensor
    """int64 [L, G]: the i-th to be rounded is group ``groups[:, i]`` of the matrix."""
    hessian: Tensor
    """Damped, float32 [L, C, C]."""
    upper: Tensor
    """U, float32 [L, C, C]."""
    carry: Tensor
    """U with each group of columns times its triangle's inverse, float32 [L, C, C]: row i, column j
    is what an error in column i adds to the target of column j of a later group."""
    triangles: Tensor
    """float32 [L, G, 8, 8]: the diagonal blocks of U, the metric in which a group is rounded."""

    def take(self, inputs: Sequence[int]) -> Factor:
        """Return the factors of some of the inputs."""
        return Factor(
            **{field.name: take_inputs(getattr(self, field.name), inputs) for field in fields(self)}
        )

    @property
    def importance(self) -> Tensor:
        """What an error in each column counts for when scales are fitted before GPTQ, [L, C].

        Between what it costs if no other column makes up for it (the diagonal of H) and if all
        later ones do (that of U, squared): the geometric mean (docs/decisions/gptq.md).
        """
        made_up = _diagonal(self.upper).square()
        return self.restored((_diagonal(self.hessian) * made_up).sqrt())

    @cached_property
    def natural(self) -> Tensor:
        """The damped Hessians in the matrices' own order of columns, [L, C, C]."""
        return self.restored(self.restored(self.hessian).mT)

    def ordered(self, columns: Tensor) -> Tensor:
        """Put columns [L, C, …] of matrices into the order of rounding."""
        return _take(columns, self.groups)

    def restored(self, columns: Tensor) -> Tensor:
        """Undo :meth:`ordered`."""
        return _take(columns, self.groups.argsort(1))

    def cost(self, errors: Tensor) -> Tensor:
        """Return E H Eᵀ of each row, [L, N], of errors [L, C, N] in the order of rounding."""
        total = errors.new_zeros(errors.shape[0], errors.shape[2])
        for start in range(0, errors.shape[1], COLUMN_BLOCK):
            stop = start + COLUMN_BLOCK
            total += column_sums(
                torch.bmm(self.upper[:, :stop, start:stop].mT, errors[:, :stop]).square_()
            )
        return total


def factorize(hessians: Tensor, names: Sequence[str], progress: Progress) -> Factor:
    """Order, damp and factorize second moments [L, C, C].

    One that is not positive definite with ``DAMPING`` gets ten times as much until it is, which
    is said once, by name. Inputs that are always zero keep their weights near what they were:
    damping is all that an error there costs.

    Args:
        hessians: means of x xᵀ.
        names: whose inputs they are.
        progress: told what was done to a Hessian that did not factorize.

    Raises:
        UserError: a Hessian holds numbers that are not finite, or does not factorize however much
            it is damped.
    """
    for hessian, name in zip(hessians, names, strict=True):
        refuse_what_is_not_finite(hessian, f"the Hessian of {name}")
    importance = torch.unflatten(_diagonal(hessians), 1, (-1, COLUMN_GROUP)).sum(2)
    groups = importance.argsort(dim=1, descending=True, stable=True)
    ordered = _take(_take(hessians, groups).mT, groups)
    parts = [_factor(one, name, progress) for one, name in zip(ordered, names, strict=True)]
    hessian, upper, carry, triangles = map(stacked, zip(*parts, strict=True))
    return Factor(groups=groups, hessian=hessian, upper=upper, carry=carry, triangles=triangles)


def _factor(
    hessian: Tensor, name: str, progress: Progress
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factorize one Hessian [C, C] in double precision into what :class:`Factor` holds of it.

    It is damped in place, and what is not needed any more goes: of a wide input each matrix takes
    gigabytes.
    """
    # H = U Uᵀ from the last column on: the lower factor of H turned round, turned round
    turned = hessian.flip(0, 1).double()
    own = turned.diagonal().clone()
    mean = own.mean()
    if not mean > torch.finfo(torch.float32).tiny:  # an input that the text never reached
        mean = torch.ones_like(mean)
    damping = DAMPING
    for _ in range(ATTEMPTS):
        torch.add(own, damping * mean, out=turned.diagonal())
        lower, info = torch.linalg.cholesky_ex(turned)
        if not info:
            break
        damping *= MORE
    else:
        raise UserError(
            f"the Hessian of {name} cannot be factorized, even when damped by {damping / MORE:g} "
            "of its mean diagonal; use other calibration text, or --rounding=nearest"
        )
    if damping > DAMPING:
        share = f"{damping:g} of its mean diagonal"
        progress.say(f"The Hessian of {name} could not be factorized, so it was damped by {share}")
    hessian.diagonal().copy_(turned.diagonal().flip(0))
    del turned
    lower = lower.float()
    upper = lower.flip(0, 1)
    del lower
    triangles = diagonal_blocks(upper.unsqueeze(0))[0]
    inverses = torch.linalg.inv(triangles.double()).float()
    # U_ig T_g⁻¹ for every group g: [C, C] -> [G, C, 8] and back
    by_group = torch.unflatten(upper, 1, (-1, COLUMN_GROUP)).transpose(0, 1)
    carry = torch.bmm(by_group, inverses).transpose(0, 1).flatten(1)
    return hessian, upper, carry, triangles


def take_inputs(values: Tensor, inputs: Sequence[int]) -> Tensor:
    """Return what belongs to some of the inputs, of [L, …]."""
    first = inputs[0]
    if list(inputs) == list(range(first, first + len(inputs))):  # a view: factors are large
        return values[first : first + len(inputs)]
    return values[torch.tensor(inputs, device=values.device)]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors [...] to [L, ...]; one alone is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def refuse_what_is_not_finite(moment: Tensor, name: str) -> None:
    """Raise a UserError that names a second moment which holds infinite numbers or NaN."""
    wrong = int((~moment.isfinite()).sum())
    if wrong:
        raise UserError(
            f"{wrong} of the {moment.numel()} numbers in {name} are not finite: "
            "the model overflowed on the calibration text; check the checkpoint's weights, or "
            "give other text with --calibration and an empty --work-dir"
        )


def column_sums(matrix: Tensor) -> Tensor:
    """Sum [L, n, N] over n: [L, N].

    torch's own sum adds in an order that depends on where a column stands, so that what is rounded
    together would change the last bits. Here it is always halves upon halves.
    """
    while matrix.shape[1] > 1:
        half = matrix.shape[1] // 2
        sums = matrix[:, :half] + matrix[:, half : 2 * half]
        odd = matrix[:, 2 * half :]
        matrix = torch.cat([sums, odd], 1) if odd.shape[1] else sums
    return matrix[:, 0]


def diagonal_blocks(matrix: Tensor) -> Tensor:
    """Return the diagonal blocks [L, G, 8, 8] of matrices [L, C, C]."""
    # [L, C, C] -> [L, G, 8, G, 8], of which the pairs of equal groups go first
    pairs = torch.unflatten(torch.unflatten(matrix, 2, (-1, COLUMN_GROUP)), 1, (-1, COLUMN_GROUP))
    return torch.diagonal(pairs, dim1=1, dim2=3).permute(0, 3, 1, 2)


def _diagonal(matrices: Tensor) -> Tensor:
    """Return the diagonals [L, C] of [L, C, C]."""
    return matrices.diagonal(dim1=1, dim2=2)


def take_groups(values: Tensor, order: Tensor) -> Tensor:
    """Put what belongs to groups of columns, [L, G, …], into another order, int64 [L, G]."""
    of_input = torch.arange(len(order), device=order.device).unsqueeze(1)
    return values[of_input, order]


def _take(columns: Tensor, groups: Tensor) -> Tensor:
    """Groups of eight columns in another order; neighbours stay neighbours."""
    # [L, C, …] -> [L, G, 8, …] and back
    return take_groups(torch.unflatten(columns, 1, (-1, COLUMN_GROUP)), groups).flatten(1, 2)
