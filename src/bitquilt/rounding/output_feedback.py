"""Feedback between outputs: rows of a matrix make up for the errors of rows rounded before them.

Per token, the Hessian of the KL in the weights of one matrix is about B ⊗ A, with A the second
moment of its inputs and B = E[g gᵀ] that of the gradients at its outputs (K-FAC, Martens & Grosse
2015). So an error E costs ½ tr(B E A Eᵀ), and rows interact as columns do (YAQA, Tseng et al. 2025,
arXiv 2505.22988). With B = V Vᵀ, V upper triangular, and rows cut into chunks k, that is the sum of

    ½ ‖V_kkᵀ (E_k − S_k) A^½‖²   with   S_k = −V_kk⁻ᵀ Σ_{i<k} V_ikᵀ E_i:

the k-th chunk is rounded as if W_k + S_k were its weights, which is LDLQ (Chee et al. 2023) with
chunks of rows for columns. Once all are rounded, the best E_k for the others' errors is
−B_kk⁻¹ Σ_{i≠k} B_ki E_i.

Within a chunk, rows are rounded independently. B is learned from few tokens: how far its
off-diagonals count is found when it is summed (:mod:`bitquilt.calibration.output_shrinkage`).

Letters: R rows of a matrix, C columns, n rows of one chunk, a rows of those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat

import torch
from torch import Tensor

from bitquilt.calibration.output_shrinkage import row_chunks
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.qtypes.qtype import QuantType, Unpacked
from bitquilt.rounding.hessian import refuse_what_is_not_finite
from bitquilt.rounding.row_batches import RoundedRows, Rows, by_type, decode_rows
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.threads import in_threads

OUTPUT_DAMPING = 0.03
"""This part of the mean diagonal is added to it (docs/decisions/output-feedback.md)."""
WORKED_OUT = 1 << 30
"""Bytes of moments, float64, whose links are worked out together on a GPU."""
OUTPUT_BYTES = 8
"""What an entry of B takes in memory, with all that is worked out of it."""


@dataclass(frozen=True)
class OutputFactor:
    """The second moment of a matrix's output gradients, ordered, damped and factorized."""

    order: Tensor
    """int64 [R]: the i-th row to be rounded is row ``order[i]``, important ones first."""
    moment: Tensor
    """B, damped, in that order, float32 [R, R]."""

    @cached_property
    def chunks(self) -> Sequence[slice]:
        """Which places of the order each chunk has."""
        return row_chunks(len(self.order))

    @property
    def forward(self) -> Sequence[Tensor]:
        """−V_kk⁻ᵀ V_ikᵀ for all i < k, float32 [n, a] of each chunk: errors → what is added."""
        return self._in_turn[0]

    @property
    def shares(self) -> Tensor:
        """What of a row's error counts if later chunks make up for it, float32 [R].

        It is the diagonal of V_kk V_kkᵀ as a part of that of B.
        """
        return self._in_turn[1]

    @cached_property
    def given_all(self) -> Sequence[Tensor]:
        """−B_kk⁻¹ B_ki, and 0 for i = k, float32 [n, R] of each chunk: errors → what is added."""
        return _given_all(self.moment)

    @cached_property
    def _in_turn(self) -> tuple[Sequence[Tensor], Tensor]:
        """The links of :attr:`forward`, and :attr:`shares`."""
        return _in_turn(self.moment, _upper(self.moment))


def work_out(factors: Sequence[OutputFactor], polishes: bool) -> None:
    """Work out, for all of one size at once, what each would for itself: a GPU has the more to do.

    Args:
        factors: on one device.
        polishes: whether matrices are polished with them, and not rounded for the first time.
    """
    alike: dict[int, list[OutputFactor]] = {}
    for factor in factors:
        alike.setdefault(len(factor.order), []).append(factor)
    for rows, own in alike.items():
        step = max(1, WORKED_OUT // (8 * rows**2))
        for start in range(0, len(own), step):
            some = own[start : start + step]
            moments = torch.stack([one.moment for one in some])
            if polishes:
                _fill(some, "given_all", list(zip(*_given_all(moments), strict=True)))
            else:
                links, shares = _in_turn(moments, torch.stack([_upper(one) for one in moments]))
                _fill(some, "_in_turn", list(zip(zip(*links, strict=True), shares, strict=True)))


def _fill(factors: Sequence[OutputFactor], name: str, values: Sequence[object]) -> None:
    """Let a cached property of each factor be what was worked out for it."""
    for factor, value in zip(factors, values, strict=True):
        factor.__dict__[name] = value


def _given_all(moments: Tensor) -> list[Tensor]:
    """See :attr:`OutputFactor.given_all`: [..., n, R] of each chunk, of moments [..., R, R]."""
    found = []
    for own in row_chunks(moments.shape[-1]):
        others = moments[..., own, :].double()
        lower = torch.linalg.cholesky(others[..., own])
        others[..., own] = 0
        found.append(-torch.cholesky_solve(others, lower).float())
    return found


def _upper(moment: Tensor) -> Tensor:
    """Factorize B = V Vᵀ, float64 [R, R]: the last row first, as it is turned round."""
    lower: Tensor = torch.linalg.cholesky(moment.double().flip(0, 1))
    return lower.flip(0, 1)


def _in_turn(moments: Tensor, upper: Tensor) -> tuple[list[Tensor], Tensor]:
    """See :class:`OutputFactor`: links [..., n, a] of each chunk, and shares [..., R]."""
    links, left = [], []
    for own in row_chunks(moments.shape[-1]):
        block, before = upper[..., own, own], upper[..., : own.start, own]
        links.append(-torch.linalg.solve_triangular(block.mT, before.mT, upper=False).float())
        left.append(block.square().sum(-1))
    shares = torch.cat(left, -1) / moments.diagonal(dim1=-2, dim2=-1)
    return links, shares.float()


def factorize_outputs(moment: Tensor, name: str) -> OutputFactor:
    """Order and damp a second moment of output gradients.

    Args:
        moment: B, float32 [R, R], its off-diagonals shrunk as far as they are trusted.
        name: whose outputs they are.

    Raises:
        UserError: it holds numbers that are not finite.
    """
    refuse_what_is_not_finite(moment, f"the output gradients of {name}")
    own = moment.diagonal().double()
    mean = own.mean()
    if not mean > torch.finfo(torch.float32).tiny:  # outputs that nothing depends on
        mean = torch.ones_like(mean)
    order = own.argsort(descending=True, stable=True)
    ordered = moment[order][:, order]
    ordered.diagonal().copy_(own[order] + OUTPUT_DAMPING * mean)
    return OutputFactor(order, ordered)


def outputs_of(statistics: CalibrationStats, module: str) -> OutputFactor | None:
    """Factorize the output gradients of a matrix, on the device; None where they are not known."""
    moment = statistics.outputs(module)
    return None if moment is None else factorize_outputs(moment.to(compute_device()), module)


def targets_of(matrices: Sequence[ChunkedMatrix], chunk: int) -> list[Tensor]:
    """Return what to round instead of the weights of a chunk of each matrix; see the class.

    A GPU multiplies for all of one shape at once; on a CPU each has a thread.
    """
    if _on_cpu(matrices):
        return in_threads(ChunkedMatrix.target, matrices, repeat(chunk))
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        alike.setdefault(matrix.link_shape(chunk), []).append(i)
    targets: dict[int, Tensor] = {}
    for own in alike.values():
        some = [matrices[i] for i in own]
        if len(some) == 1 or chunk == 0:
            targets |= {i: matrices[i].target(chunk) for i in own}
            continue
        weights = torch.stack([matrix.rows_of(matrix.weight, chunk) for matrix in some])
        links, errors = zip(*(matrix.linked(chunk) for matrix in some), strict=True)
        made = torch.baddbmm(weights, torch.stack(links), torch.stack(errors))
        targets |= zip(own, made, strict=True)
    return [targets[i] for i in range(len(matrices))]


def keep_chunk(
    matrices: Sequence[ChunkedMatrix], chunk: int, rounded: Sequence[RoundedRows]
) -> None:
    """Let each matrix keep what its chunk became; a GPU decodes all of one type at once."""
    if _on_cpu(matrices):
        in_threads(ChunkedMatrix.keep, matrices, repeat(chunk), rounded)
        return
    own = [i for i, matrix in enumerate(matrices) if matrix.count > 1]
    rows = [Rows(matrices[i].qtype, matrices[i].errors_of(chunk), rounded[i].fields) for i in own]
    (levels,) = by_type([rows], decode_rows)
    decoded = dict(zip(own, levels, strict=True))
    for i, matrix in enumerate(matrices):
        matrix.keep(chunk, rounded[i], decoded.get(i))


def _on_cpu(matrices: Sequence[ChunkedMatrix]) -> bool:
    return bool(matrices) and matrices[0].weight.device.type == "cpu"


@dataclass
class ChunkedMatrix:
    """A matrix that is rounded, or polished, chunk by chunk. Without B it is one chunk."""

    weight: Tensor
    """float32 [R, C]."""
    qtype: QuantType
    outputs: OutputFactor | None
    fields: Unpacked | None = None
    """What it was rounded to, if it is polished now."""
    _done: list[RoundedRows] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Work out what chunks have in common, which threads would do twice."""
        self._links: Sequence[Tensor] = []
        if self.outputs is not None:
            polishes = self.fields is not None
            self._links = self.outputs.given_all if polishes else self.outputs.forward
        if self.count > 1:  # E in the order of rounding
            self._errors = torch.zeros_like(self.weight)
            if self.outputs is not None and self.fields is not None:
                torch.sub(self.qtype.decode(self.fields), self.weight, out=self._errors)
                self._errors = self._errors[self.outputs.order]

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return 1 if self.outputs is None else len(self.outputs.chunks)

    def target(self, chunk: int) -> Tensor:
        """Return what to round instead of a chunk's weights, float32 [n, C]."""
        if self.outputs is None or self.count == 1:
            return self.rows_of(self.weight, chunk)
        link, errors = self.linked(chunk)
        return torch.addmm(self.rows_of(self.weight, chunk), link, errors)

    def linked(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Return what turns errors into what is added to a chunk, [n, a], and these, [a, C]."""
        link = self._links[chunk]
        return link, self._errors[: link.shape[1]]

    def link_shape(self, chunk: int) -> tuple[int, ...]:
        """Return equal numbers for matrices whose targets are worked out together."""
        linked = self.outputs is not None and self.count > 1
        return (*self.weight.shape, *self._links[chunk].shape) if linked else ()

    def rounded(self, chunk: int) -> Unpacked:
        """Return what a chunk that is polished was rounded to."""
        assert self.fields is not None
        return {name: self.rows_of(one, chunk) for name, one in self.fields.items()}

    def keep(self, chunk: int, rounded: RoundedRows, levels: Tensor | None = None) -> None:
        """Take what a chunk became, and what that decodes to; chunks come in their order."""
        self._done.append(rounded)
        if self.count > 1:
            levels = self.qtype.decode(rounded.fields) if levels is None else levels
            torch.sub(levels, self.rows_of(self.weight, chunk), out=self.errors_of(chunk))

    def errors_of(self, chunk: int) -> Tensor:
        """Return where a chunk's errors are kept, [n, C]."""
        assert self.outputs is not None
        return self._errors[self.outputs.chunks[chunk]]

    def result(self) -> RoundedRows:
        """Return all rows in the matrix's own order.

        A row's cost is that of its target, times the share that later chunks leave of it, so that
        ½ Σ_r B_rr cost_r is the KL that the whole error costs, as far as rows of one chunk do not
        interact.
        """
        first, *_ = self._done
        if self.outputs is None:
            return first
        natural = self.outputs.order.argsort()
        fields = {
            name: torch.cat([one.fields[name] for one in self._done])[natural]
            for name in first.fields
        }
        costs = [one.costs for one in self._done if one.costs is not None]
        # a matrix is said to have feedback where some of its rows do
        methods = {one.method for one in self._done}
        method = first.method if len(methods) == 1 else (methods - {"nearest"}).pop()
        whole = (torch.cat(costs) * self.outputs.shares)[natural] if costs else None
        return replace(first, fields=fields, method=method, costs=whole)

    def rows_of(self, rows: Tensor, chunk: int) -> Tensor:
        """Take a chunk of rows [R, …]."""
        if self.outputs is None:
            return rows
        return rows[self.outputs.order[self.outputs.chunks[chunk]]]
