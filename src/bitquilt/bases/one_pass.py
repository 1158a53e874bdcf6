"""One pass over a text, layer by layer: memory holds the moments of one layer.

All windows go through a layer before the next one, some at a time, so that an expert sees the
tokens of the text in a few large products. What layers read is kept for the way back, of one layer
in so many that memory holds it, and computed again for those between
(:mod:`bitquilt.calibration.kept_states`). On the way back a layer is computed once more, with
autograd, and its products are watched.

Letters: N windows of L tokens; a batch has n of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitquilt.bases.backward import back_from_labels, go_back
from bitquilt.bases.fisher import FisherProducts, owner_of
from bitquilt.bases.layerwise import LayerCall, LayerwiseModel
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.lookups import Lookups
from bitquilt.bases.partners import Unit
from bitquilt.calibration.block_moments import OUTPUTS
from bitquilt.calibration.packed_moment import packed_bytes
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.products import fast_precision, multiplying

BACK = 3.0
"""What a window takes back through a layer, in windows that go forward."""
TakePart = Callable[[int, FisherProducts], None]
"""Takes the moments of a layer, by its number; the last number is that of what is behind them."""


@dataclass(frozen=True, kw_only=True)
class OnePass:
    """A pass over a text, as often as it is run."""

    layerwise: LayerwiseModel
    parameters: Mapping[str, Tensor]
    """Of the model."""
    lookups: Lookups
    """Has the gradients of embeddings at the end of a pass."""
    windows: int
    """n."""
    kept_bytes: int
    """What layers read takes about so many bytes, if it has to take more than a few layers'."""
    moment_bytes: int
    """The moments that are summed at once have so many bytes; a layer of more is gone through
    several times."""

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.layerwise.layers)

    def work(self, windows: int) -> float:
        """Return what a pass takes, in windows that go forward through one layer."""
        return windows * (self.layers + BACK * (self.layers + 1))

    def with_windows(self, count: int) -> OnePass:
        """Return the same with so many windows in a batch."""
        return replace(self, windows=count)

    def run(
        self,
        tokens: Tensor,
        take: TakePart,
        wanted: Callable[[int], bool] = lambda _: True,
        advance: Callable[[float], None] = lambda _: None,
        exactly: bool = False,
    ) -> None:
        """Run a text [N, L] forward and back.

        Args:
            tokens: int64.
            take: gets moments, from behind the last layer to the first.
            wanted: whether a layer's second moments are.
            advance: is told of :meth:`work`.
            exactly: whether a GPU multiplies in float32, and not in TF32 as it does for other
                models (docs/decisions/two-passes.md).

        Raises:
            UserError: the model's own code cannot be differentiated.
            NotLayerwiseError: its layers cannot be run one by one.
        """
        fast = compute_device().type == "cuda" and not exactly
        with multiplying(fast_precision(compute_device()) if fast else "highest"):
            _Run(self, tokens, take, wanted, advance).through()


class _Run:
    """One text on its way."""

    def __init__(
        self,
        way: OnePass,
        tokens: Tensor,
        take: TakePart,
        wanted: Callable[[int], bool],
        advance: Callable[[float], None],
    ) -> None:
        self._way, self._take, self._wanted, self._advance = way, take, wanted, advance
        self._model, self._batches = way.layerwise, tokens.split(way.windows)
        self._lent = lent_weights(way.layerwise.model)
        self._calls: list[list[LayerCall]] = []
        self._inputs: dict[int, list[Tensor]] = {}
        """Layer → what it reads, of each batch."""
        self._every = 1
        self._gradients: list[Tensor] = []

    def through(self) -> None:
        """Go forward, and back."""
        last = self._forward()
        self._behind(last)
        del last
        for index in reversed(range(self._way.layers)):
            self._back(index, self._read_by(index))
        self._before()

    @torch.no_grad()
    def _forward(self) -> list[Tensor]:
        """Return what the last layer gives, and keep what some layers read."""
        hidden = []
        for tokens in self._batches:
            first, calls = self._model.begin(tokens)
            self._way.lookups.end_window()
            known = self._calls[0] if self._calls else calls
            shared = [one.shared(two) for one, two in zip(calls, known, strict=True)]
            self._calls.append(shared)
            hidden.append(first.detach())
        self._every = kept_every(
            self._way.layers, sum(one.nbytes for one in hidden), self._way.kept_bytes
        )
        for index in range(self._way.layers):
            if index % self._every == 0:
                self._inputs[index] = hidden
            hidden = self._next(index, hidden)
            self._advance(self._count)
        return hidden

    def _next(self, index: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(hidden, self._calls, strict=True)
        return [self._model.run(index, one, calls[index]) for one, calls in pairs]

    @torch.no_grad()
    def _read_by(self, index: int) -> list[Tensor]:
        """Return what a layer reads, which is kept no longer."""
        if index not in self._inputs:
            first = index - index % self._every
            for between in range(first, index):
                self._inputs[between + 1] = self._next(between, self._inputs[between])
        return self._inputs.pop(index)

    def _behind(self, last: list[Tensor]) -> None:
        """Go from the last layer to logits and back, a window at a time."""
        products = self._products(lambda _: True)
        for tokens, hidden in zip(self._batches, last, strict=True):
            gradients = []
            for window, own in zip(tokens, hidden.split(1), strict=True):
                x = own.detach().requires_grad_()
                with torch.enable_grad(), self._lent.saved(), products:
                    logits = self._model.end(window[None], x)
                    products.back = True
                    back_from_labels(self._model.model, window, logits)
                del logits
                self._end(products)
                self._way.lookups.end_window()
                gradients.append(_gradient_of(x))
                self._advance(BACK)
            self._gradients.append(torch.cat(gradients))
        self._take(self._way.layers, products)

    def _back(self, index: int, inputs: list[Tensor]) -> None:
        """Take gradients back through a layer, and let its moments be taken."""
        if not self._wanted(index):
            self._take(index, self._through_layer(index, inputs, lambda _: False, last=True))
            return
        parts = self._parts(index, inputs)
        count = max([0, *parts.values()]) + 1
        for number in range(count):
            summed = summed_in(parts, number)
            self._take(index, self._through_layer(index, inputs, summed, number + 1 == count))

    def _through_layer(
        self,
        index: int,
        inputs: Sequence[Tensor],
        summed: Callable[[Unit], bool],
        last: bool,
    ) -> FisherProducts:
        """Sum the moments of some of a layer's matrices; the last time gradients go further."""
        products = self._products(summed)
        for place, hidden in enumerate(inputs):
            x = hidden.detach().requires_grad_()
            with torch.enable_grad(), self._lent.saved(), products:
                made = self._model.run(index, x, self._calls[place][index])
                products.back = True
                go_back(self._model.model, made, self._gradients[place])
            del made
            self._end(products)
            if last:
                self._gradients[place] = _gradient_of(x)
                self._advance(BACK * len(x))
        return products

    def _parts(self, index: int, inputs: Sequence[Tensor]) -> dict[Unit, int]:
        """Part a layer's matrices where memory does not hold the moments of all."""
        own = [one for one in self._model.layers[index].parameters() if one.ndim > 1]
        most = sum(4 * one.numel() // min(one.shape[-2:]) * max(one.shape[-2:]) * 2 for one in own)
        if most <= self._way.moment_bytes:
            return {}
        first = self._through_layer(index, inputs[:1], lambda _: False, last=False)
        return passes_of(first, self._way.parameters, self._way.moment_bytes)

    @torch.enable_grad()
    def _before(self) -> None:
        """Take gradients from the first layer to what was looked up."""
        for tokens, gradient in zip(self._batches, self._gradients, strict=True):
            hidden, _ = self._model.begin(tokens)
            go_back(self._model.model, hidden, gradient)
            self._lent.end_window()
            self._way.lookups.end_window()

    def _products(self, summed: Callable[[Unit], bool]) -> FisherProducts:
        return FisherProducts(self._way.parameters, summed, self._lent.known)

    def _end(self, products: FisherProducts) -> None:
        self._lent.end_window()
        products.end_window()

    @property
    def _count(self) -> int:
        return sum(map(len, self._batches))


def _gradient_of(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def kept_every(layers: int, nbytes: int, most: int) -> int:
    """Return of one layer in how many it is kept what the text is there.

    Args:
        layers: of the model.
        nbytes: of what one layer reads.
        most: bytes that may be kept.

    Returns:
        the smallest with which all that is kept at once fits, or that with which it is least.
    """
    ways = {every: math.ceil(layers / every) + every - 1 for every in range(1, layers + 1)}
    fitting = [every for every, count in ways.items() if count * nbytes <= most]
    return fitting[0] if fitting else min(ways, key=lambda every: ways[every])


def passes_of(
    products: FisherProducts, parameters: Mapping[str, Tensor], most: int
) -> dict[Unit, int]:
    """Part matrices so that the moments of each part fit into memory at once.

    Args:
        products: has seen a window; of a stack, those that it did not reach are as the others.
        parameters: have the shapes.
        most: bytes of the moments of one pass.

    Returns:
        the number of the pass of each matrix; -1 where its moment alone is too large.
    """
    owners = {unit: owner_of(together) for together in products.readers for unit in together}
    passes: dict[Unit, int] = {}
    number = taken = 0
    for unit in _with_stacks(products.rows, parameters):
        rows, columns = parameters[unit.parameter].shape[-2:]
        if unit.transposed:
            rows, columns = columns, rows
        shared = owners.get(unit, unit) != unit
        nbytes = 4 * ((0 if shared else columns**2) + (rows**2 if rows <= OUTPUTS else 0))
        if 4 * columns**2 > most:
            passes[unit] = -1
            continue
        if taken and taken + nbytes > most:
            number, taken = number + 1, 0
        passes[unit] = number
        taken += nbytes
    return passes


def packed_moment_bytes(products: FisherProducts, parameters: Mapping[str, Tensor]) -> int:
    """Return what the moments of all matrices that were seen would take on the disk."""
    owners = {unit: owner_of(together) for together in products.readers for unit in together}
    total = 0
    for unit in _with_stacks(products.rows, parameters):
        rows, columns = parameters[unit.parameter].shape[-2:]
        if unit.transposed:
            rows, columns = columns, rows
        if owners.get(unit, unit) == unit:
            total += packed_bytes(columns)
        if rows <= OUTPUTS:
            total += packed_bytes(rows)
    return total


def _with_stacks(units: Mapping[Unit, object], parameters: Mapping[str, Tensor]) -> list[Unit]:
    """Units, and the rest of the stacks that they are of."""
    found: dict[Unit, None] = {}
    for unit in units:
        shape = parameters[unit.parameter].shape
        for index in range(math.prod(shape[:-2])):
            found[Unit(unit.parameter, index, unit.transposed)] = None
    return list(found)


def summed_in(passes: Mapping[Unit, int], number: int) -> Callable[[Unit], bool]:
    """Return which matrices are summed in a pass: those that nobody has seen in the first."""
    return lambda unit: passes.get(unit, 0) == number
