"""What errors of a model's matrices cost, seen where torch multiplies: forward, and back.

Forward, a product shows what a matrix reads, x. Back, torch multiplies the gradient g of the
product with the same matrix, from the other side, so that it is seen, too. A layer that is computed
again on the way back shows what it reads there, just before its gradients. With labels that the
model itself samples, the KL of an error ΔW is about ½ Σ_r b_r ΔW_r H ΔW_rᵀ, with b_r = E[g_r²] and
H = Σ ‖g‖² x xᵀ / Σ ‖g‖² (K-FAC, Martens & Grosse 2015; :mod:`bitquilt.calibration.collect` has the
same of the models that it knows). Matrices that read the same x share H.

Letters: T tokens, C columns of a matrix, R rows, K columns or rows of one product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitquilt.bases.partners import Unit
from bitquilt.bases.products import WatchedProducts
from bitquilt.calibration.block_moments import OUTPUTS, add_moment

Readers = frozenset[Unit]
"""The matrices that read one input together."""


@dataclass
class ReadInput:
    """An input of one window, and what its tokens count for."""

    inputs: Tensor
    """[T, K]."""
    start: int
    """The first column of its readers that is read."""
    width: int
    """C of its readers."""
    weights: Tensor
    """Σ g² over the outputs of the readers, [T]."""
    units: set[Unit] = field(default_factory=set)


@dataclass
class InputMoment:
    """Σ ‖g‖² x xᵀ of what some matrices read."""

    total: Tensor
    """[C, C], of which :func:`bitquilt.calibration.packed_moment.mirrored` fills in the rest."""
    weight: Tensor
    """Σ ‖g‖², float64, no dimensions."""


class FisherProducts(WatchedProducts):
    """While it is entered, products leave moments; set :attr:`back` before going back."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        is_summed: Callable[[Unit], bool],
        lent: Mapping[int, tuple[str, Tensor]] | None = None,
        recomputes: bool = False,
    ) -> None:
        """Watch these parameters.

        Args:
            parameters: of a model.
            is_summed: whether the second moments of a matrix are summed in this pass, as memory
                has no room for all.
            lent: see :class:`bitquilt.bases.products.WatchedProducts`.
            recomputes: whether layers are computed again on the way back.
        """
        super().__init__(parameters, lent)
        self.back = False
        self.readers: set[Readers] = set()
        """All that have been seen to read something together."""
        self.moments: dict[Readers, InputMoment] = {}
        self.rows: dict[Unit, Tensor] = {}
        """Σ g² of each output, float64 [R]."""
        self.outputs: dict[Unit, Tensor] = {}
        """Σ g gᵀ, [R, R], where R is at most :data:`OUTPUTS`."""
        self._is_summed, self._recomputes = is_summed, recomputes
        self._forward: set[Unit] = set()
        self._waiting: dict[Unit, list[tuple[int, Tensor]]] = {}
        self._expected: Counter[tuple[object, ...]] = Counter()
        self._read: dict[tuple[object, ...], ReadInput] = {}
        self._widths: dict[Unit, int] = {}

    def note(self, unit: Unit, width: int, start: int, inputs: Tensor, batched: bool) -> None:
        """See :meth:`WatchedProducts.note`; on the way back inputs are gradients."""
        if not self.back:
            super().note(unit, width, start, inputs, batched)
            self._widths[unit] = width
            self._forward.add(unit)
        if not self.back or (self._recomputes and unit in self._forward):
            if torch.is_grad_enabled():  # else it is computed again
                self._waiting.setdefault(unit, []).append((start, inputs.detach()))
                self._expected[_key(inputs, start)] += 1
            return
        reader = Unit(unit.parameter, unit.index, not unit.transposed)
        if waiting := self._waiting.get(reader):  # the last product forward is the first back
            begin, x = waiting.pop()
            self._note_gradient(reader, width, start, inputs.detach(), begin, x)

    def _note_gradient(
        self, unit: Unit, rows: int, row: int, gradient: Tensor, begin: int, x: Tensor
    ) -> None:
        """Take the gradient [T, K] of outputs from ``row`` on, of a product with x."""
        own = slice(row, row + gradient.shape[1])
        square = gradient.square()
        if unit not in self.rows:
            self.rows[unit] = square.new_zeros(rows, dtype=torch.float64)
        self.rows[unit][own] += square.sum(0).double()
        if rows <= OUTPUTS and self._is_summed(unit):
            if unit not in self.outputs:
                self.outputs[unit] = gradient.new_zeros(rows, rows)
            self.outputs[unit][own, own] += gradient.T @ gradient
        key = _key(x, begin)
        if key not in self._read:
            self._read[key] = ReadInput(x, begin, self._widths[unit], x.new_zeros(len(x)))
        self._read[key].units.add(unit)
        self._read[key].weights += square.sum(1)
        self._expected[key] -= 1
        if not self._expected[key]:  # all that read it have come back
            self._end(self._read.pop(key))
            del self._expected[key]

    def end_window(self) -> None:
        """Sum what a window showed, forward and back, and be ready for the next."""
        for read in self._read.values():
            self._end(read)
        self._read.clear()
        self._waiting.clear()
        self._expected.clear()
        self.back = False

    def _end(self, read: ReadInput) -> None:
        together = frozenset(read.units)
        self.readers.add(together)
        if self._is_summed(owner_of(together)):
            self._sum(together, read)

    def _sum(self, readers: Readers, read: ReadInput) -> None:
        if readers not in self.moments:
            total = read.inputs.new_zeros(read.width, read.width)
            self.moments[readers] = InputMoment(total, total.new_zeros((), dtype=torch.float64))
        moment = self.moments[readers]
        x = read.inputs * read.weights.sqrt().unsqueeze(1)
        inside = slice(read.start, read.start + x.shape[1])
        total = moment.total[inside, inside]
        add_moment(total, x)
        if x.shape[1] < read.width:  # only what is whole is cut into the same slabs
            total.copy_(total.triu() + total.triu(1).T)
        moment.weight += read.weights.double().sum()


def _key(x: Tensor, start: int) -> tuple[object, ...]:
    """Return what tells an input from others that are in memory at the same time."""
    return x.data_ptr(), x.shape, x.stride(), start


def owner_of(readers: Readers) -> Unit:
    """Return the one of several readers that stands for all."""
    return min(readers, key=lambda unit: (unit.parameter, unit.index, unit.transposed))
