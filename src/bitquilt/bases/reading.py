"""How a model without tables reads text, forward and back: layer by layer, or as a whole.

Layer by layer it goes where the layers can be run one by one, and give the same gradients as the
whole model does; this is tried on a few tokens. Else windows go through the whole model one by one,
again for each part of the moments that memory holds.

Letters: N windows of L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bitquilt.bases.backward import back_from_labels
from bitquilt.bases.deferred_stacks import moved_model
from bitquilt.bases.fisher import FisherProducts
from bitquilt.bases.layerwise import layerwise_model
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.lookups import Lookups
from bitquilt.bases.one_pass import (
    OnePass,
    TakePart,
    packed_moment_bytes,
    passes_of,
    summed_in,
)
from bitquilt.bases.partners import Unit
from bitquilt.bases.recomputed import RecomputedLayers
from bitquilt.errors import UserError
from bitquilt.models.blockwise import batch_tokens
from bitquilt.runtime.device import compute_device

MOMENT_BYTES = 4 << 30
"""The second moments that are summed in one pass have about so many bytes; a GPU may have room for
more."""
KEPT_BYTES = 1 << 30
"""Autograd may keep so many bytes of a window. An 8B model would keep about 6 GB."""
GPU_KEPT_SHARE = 8
"""Of a GPU's free memory one part in so many serves instead where that is more."""
TRIED_WINDOWS, TRIED_TOKENS = 2, 32
"""On so many of so many tokens it is tried how layers can be run."""
SAME_GRADIENTS = 1e-4
"""Squares of gradients that differ by a smaller share are the same."""
SAME_SUMS = 0.01
"""Sums of them over a parameter are: a router's choice between two experts may hang on last
digits."""


class BaseReading:
    """A model that reads text, as often as it is asked to; embeddings are watched meanwhile."""

    def __init__(self, model: nn.Module, tokens: Tensor, most_kept: int | None = None) -> None:
        """Try how the model can be run.

        Args:
            model: transformers' model, which computes in float32.
            tokens: a text that it will read, int64 [N, L].
            most_kept: bytes of what autograd may keep at once; where a window takes more, layers
                are computed again.

        Raises:
            UserError: the model's own code cannot be differentiated.
        """
        self.model = moved_model(model, compute_device())
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.lookups = Lookups(model)
        self.tokens, self._lent = tokens, lent_weights(model)
        self._most_kept = kept_bytes() if most_kept is None else most_kept
        self.packed_bytes = 0
        """About what all moments take on the disk, where they are gathered layer by layer."""
        self._as_a_whole = ""
        with self.lookups:
            self.one_pass = self._one_pass()
            if self.one_pass is None:
                self._again = self._recomputes()
                first = self._seen(tokens[:1], self._again)
                self._passes = passes_of(first, self.parameters, moment_bytes())

    @property
    def how(self) -> str:
        """Say why the text goes through the model as a whole; empty where it does not."""
        if self.one_pass is not None:
            return ""
        times = f"{self._count} times" if self._count > 1 else "once"
        return (
            f"The model's layers cannot be run one by one ({self._as_a_whole.splitlines()[0]}), so "
            f"text goes through the whole model, window by window, {times}."
        )

    @property
    def work(self) -> float:
        """What reading the text takes, in units of its own."""
        if self.one_pass is not None:
            return self.one_pass.work(len(self.tokens))
        return float(self._count * len(self.tokens))

    @property
    def _count(self) -> int:
        return max([0, *self._passes.values()]) + 1

    def run(
        self,
        take: TakePart,
        advance: Callable[[float], None],
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Read the text; each part of the moments is taken when it is whole.

        Args:
            take: gets them; what is summed of everything in each part is whole in the last.
            advance: is told of :attr:`work`.
            wanted: whether a layer's second moments are, where the text goes layer by layer.

        Raises:
            UserError: the model's own code cannot be differentiated.
        """
        self.lookups.forget()
        if self.one_pass is not None:
            with self.lookups:
                self.one_pass.run(self.tokens, take, wanted, advance)
            return
        with RecomputedLayers(self.model) if self._again else nullcontext(), self.lookups:
            for number in range(self._count):
                self.lookups.forget()
                products = self._products(summed_in(self._passes, number), self._again)
                for window in self.tokens:
                    self._run(window, products)
                    advance(1)
                take(number, products)

    def _one_pass(self) -> OnePass | None:
        """Return a way layer by layer that gives the same gradients; None where there is none."""
        piece = self.tokens[:TRIED_WINDOWS, :TRIED_TOKENS]
        whole = self._seen(piece, again=False)
        rows: dict[Unit, Tensor] = {}
        saved = [1]

        def take(_: int, products: FisherProducts) -> None:
            rows.update(products.rows)
            saved.append(self._lent.saved_bytes)

        try:
            way = OnePass(
                layerwise=layerwise_model(self.model, piece[:1]),
                parameters=self.parameters,
                lookups=self.lookups,
                windows=len(piece),
                kept_bytes=self._most_kept,
                moment_bytes=moment_bytes(),
            )
            way.run(piece, take, wanted=lambda _: False, exactly=True)
        except Exception as error:  # whatever the model's own code raises where it is run otherwise
            self._as_a_whole = str(error) or type(error).__name__
            return None
        finally:
            self._lent.end_window()
            self.lookups.end_window()
        if not _same_sums(whole.rows, rows):
            self._as_a_whole = "its gradients come out otherwise"
            return None
        self.packed_bytes = packed_moment_bytes(whole, self.parameters)
        length = self.tokens.shape[1]
        per_window = max(saved) * length // piece.numel()
        fitting = min(self._most_kept // per_window, batch_tokens(1) // length)
        return way.with_windows(max(1, fitting))

    def _recomputes(self) -> bool:
        """Tell whether layers are to be computed again: too much is kept, and gradients are equal.

        They are others where layers share what they compute, or drop something at random.
        """
        window = self.tokens[0]
        piece = window[None, :TRIED_TOKENS]
        kept = self._seen(piece, again=False)
        if self._lent.saved_bytes * len(window) / piece.numel() <= self._most_kept:
            return False
        try:
            with RecomputedLayers(self.model):
                found = self._seen(piece, again=True)
        except (RuntimeError, UserError):
            return False
        return kept.rows.keys() == found.rows.keys() and all(
            torch.allclose(rows, found.rows[unit], rtol=SAME_GRADIENTS)
            for unit, rows in kept.rows.items()
        )

    def _seen(self, windows: Tensor, again: bool) -> FisherProducts:
        """See which matrices windows [n, L] reach, and sum no moments yet."""

        def seen() -> FisherProducts:
            first = self._products(lambda _: False, again)
            try:
                for window in windows:
                    self._run(window, first)
            finally:
                self._lent.end_window()
                self.lookups.end_window()
                self.lookups.forget()
            return first

        return self._lent.tried(seen)

    def _run(self, window: Tensor, products: FisherProducts) -> None:
        """Run one window [L] through the whole model, forward and back."""
        with torch.enable_grad(), self._lent.saved(), products:
            read = self.model(window[None].to(compute_device()), use_cache=False)
            products.back = True
            back_from_labels(self.model, window, read.logits)
        self._lent.end_window()
        products.end_window()
        self.lookups.end_window()

    def _products(self, summed: Callable[[Unit], bool], again: bool) -> FisherProducts:
        return FisherProducts(self.parameters, summed, self._lent.known, again)


def _same_sums(whole: Mapping[Unit, Tensor], parts: Mapping[Unit, Tensor]) -> bool:
    """Tell whether gradients are the same, of each parameter as a whole."""
    ours, theirs = _of_parameters(whole.items()), _of_parameters(parts.items())
    return ours.keys() == theirs.keys() and all(
        bool((theirs[name] - own).abs().sum() <= SAME_SUMS * own.sum())
        for name, own in ours.items()
    )


def _of_parameters(rows: Iterable[tuple[Unit, Tensor]]) -> dict[tuple[str, bool], Tensor]:
    found: dict[tuple[str, bool], Tensor] = {}
    for unit, own in rows:
        key = unit.parameter, unit.transposed
        found[key] = found[key] + own if key in found else own
    return found


def moment_bytes() -> int:
    """Return how many bytes of moments are summed in one pass: half of what a GPU has free."""
    if compute_device().type == "cpu":
        return MOMENT_BYTES
    free, _ = torch.cuda.mem_get_info()
    return max(MOMENT_BYTES, free // 2)


def kept_bytes() -> int:
    """Return how many bytes autograd may keep, and as many what layers read."""
    if compute_device().type == "cpu":
        return KEPT_BYTES
    free, _ = torch.cuda.mem_get_info()
    return max(KEPT_BYTES, free // GPU_KEPT_SHARE)
