"""Layers that keep nothing for the way back, and are computed again there: memory holds one.

Torch's own checkpoints do it (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
Whatever stands in a list of modules is a layer; no architecture is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what stands in lists of modules; lists inside of these, as of experts, do not count."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers_of(child)


class RecomputedLayers:
    """While it is entered, the layers of a model are computed again on the way back."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model."""
        self._layers = list(layers_of(model))

    def __enter__(self) -> None:
        """Begin."""
        for layer in self._layers:
            layer.forward = _recomputing(layer.forward)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let layers keep what they need again."""
        for layer in self._layers:
            del layer.forward


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return what computes a layer and keeps its inputs alone."""

    def recomputed(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # gradients come back to what is given in order
        named = [
            name
            for name, value in options.items()
            if isinstance(value, Tensor) and value.requires_grad
        ]

        def again(*given: Any) -> Any:
            own = dict(zip(named, given[len(args) :], strict=True))
            return forward(*given[: len(args)], **{**options, **own})

        values = [options[name] for name in named]
        return checkpoint(again, *args, *values, use_reentrant=True, preserve_rng_state=False)

    return recomputed
