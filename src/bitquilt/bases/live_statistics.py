"""The statistics of one layer while they are in memory, where its moments were summed.

Letters: R rows of a matrix, C columns.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bitquilt.bases.fisher import FisherProducts, InputMoment
from bitquilt.bases.lookups import Lookups
from bitquilt.bases.partners import Unit
from bitquilt.bases.products import InputSums
from bitquilt.calibration.block_moments import SUM_SLABS
from bitquilt.calibration.packed_moment import mirrored


class UnitStatistics(Protocol):
    """What is known of parameters' matrices: kept on the disk, or in memory."""

    head: str
    """The parameter that makes logits; empty where the model does not say."""
    width: int
    """Numbers of the residual stream."""

    def sums(self) -> dict[Unit, InputSums]:
        """Return the plain sums of squares of what each matrix read, on the CPU."""

    def rows(self, unit: Unit) -> Tensor | None:
        """Return E[g²] of each output of a matrix, float64 [R], on the CPU."""

    def looked_up(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        """Return E[g²] [C] of an embedding's columns, and the share of each row [R]."""

    def inputs_of(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """Return what stands for the inputs of a matrix: equal where it shares them with others."""

    def hessian(self, unit: Unit) -> Tensor | None:
        """Return the mean of x xᵀ, weighted, float32 [C, C]; None where nothing came back."""

    def output_moment(self, unit: Unit) -> Tensor | None:
        """Return E[g gᵀ] of the outputs of a matrix, float32 [R, R]; None where R is large."""


class LiveStatistics:
    """Statistics of what was watched, as :class:`UnitStatistics` has them."""

    def __init__(
        self,
        products: FisherProducts,
        tokens: int,
        head: str,
        width: int,
        lookups: Lookups | None = None,
    ) -> None:
        """Take what a layer left.

        Args:
            products: has watched it.
            tokens: of the text.
            head: the parameter that makes logits.
            width: of the residual stream.
            lookups: of embeddings, where these are whole.
        """
        self.head, self.width = head, width
        self._products, self._tokens, self._lookups = products, tokens, lookups
        self._sums = {
            unit: InputSums(own.squares.cpu(), own.count) for unit, own in products.sums.items()
        }
        self._rows = {unit: own.cpu() / tokens for unit, own in products.rows.items()}
        self._inputs: dict[Unit, list[tuple[float, InputMoment]]] = {}
        self._names: dict[Unit, tuple[tuple[str, str], ...]] = {}
        for place, (readers, moment) in enumerate(products.moments.items()):
            weight = float(moment.weight)
            if weight > 0:
                mirrored(moment.total, SUM_SLABS)
                for unit in readers:
                    self._inputs.setdefault(unit, []).append((weight, moment))
                    self._names[unit] = (*self._names.get(unit, ()), ("", str(place)))

    def sums(self) -> dict[Unit, InputSums]:
        """See :class:`UnitStatistics`."""
        return self._sums

    def rows(self, unit: Unit) -> Tensor | None:
        """See :class:`UnitStatistics`."""
        return self._rows.get(unit)

    def looked_up(self, parameter: str) -> tuple[Tensor, Tensor] | None:
        """See :class:`UnitStatistics`."""
        if self._lookups is None or parameter not in self._lookups.columns:
            return None
        columns, tokens = self._lookups.columns[parameter], self._lookups.tokens[parameter]
        return columns / self._tokens, tokens / self._tokens

    def inputs_of(self, unit: Unit) -> tuple[tuple[str, str], ...]:
        """See :class:`UnitStatistics`."""
        return self._names.get(unit, ())

    def hessian(self, unit: Unit) -> Tensor | None:
        """See :class:`UnitStatistics`."""
        known = self._inputs.get(unit)
        if known is None:
            return None
        total = known[0][1].total.clone()
        for _, moment in known[1:]:
            total += moment.total
        return total.div_(sum(weight for weight, _ in known))

    def output_moment(self, unit: Unit) -> Tensor | None:
        """See :class:`UnitStatistics`."""
        known = self._products.outputs.get(unit)
        return None if known is None else known / self._tokens
