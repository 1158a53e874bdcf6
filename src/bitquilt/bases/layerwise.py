"""A model of transformers, run one layer at a time, with what the model itself gives each layer.

Masks, positions and whatever else a layer takes are caught from the model's own code: its layers
are replaced, and what they are called with is kept. What comes before the first layer and after the
last one is that code, too. So no architecture is named.

Letters: n windows of L tokens, V vocabulary; hidden states are [n, …], as the model has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from bitquilt.runtime.device import compute_device

_HIDDEN = "hidden_states"


class NotLayerwiseError(Exception):
    """The layers of a model cannot be run one by one."""


class _CaughtError(Exception):
    """All layers have been called."""


@dataclass(frozen=True)
class LayerCall:
    """What a layer is called with beside hidden states."""

    args: tuple[Any, ...]
    """Those in order; hidden states come before them unless they have a name."""
    options: dict[str, Any]
    named: bool
    """Whether hidden states are given by name."""

    def shared(self, other: LayerCall) -> LayerCall:
        """Return the same call, with the tensors of another one where these are equal."""
        own, tree = tree_flatten((self.args, self.options))
        theirs, _ = tree_flatten((other.args, other.options))
        if len(own) != len(theirs):
            return self
        leaves = [two if _equal(one, two) else one for one, two in zip(own, theirs, strict=True)]
        args, options = tree_unflatten(leaves, tree)
        return LayerCall(args, options, self.named)


def _equal(one: Any, two: Any) -> bool:
    if one is two or not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return one is two
    same = one.shape == two.shape and one.dtype == two.dtype and one.device == two.device
    return same and torch.equal(one, two)


@dataclass
class LayerwiseModel:
    """A causal language model in steps: before the layers, each layer, after them."""

    model: nn.Module
    layers: Sequence[nn.Module]
    further: list[tuple[Any, ...] | None] = field(default_factory=list)
    """What each layer returns behind its hidden states; None where these come alone."""

    def begin(self, tokens: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """Return what the first layer reads of tokens [n, L], and the call of every layer.

        Raises:
            NotLayerwiseError: layers are given more that gradients go through, or something is done
                between them.
        """
        calls: list[LayerCall] = []
        first: list[Tensor] = []

        def caught(index: int, *args: Any, **options: Any) -> Any:
            hidden, call = _taken(args, options)
            others, _ = tree_flatten((call.args, call.options))
            if any(isinstance(one, Tensor) and one.requires_grad for one in others):
                raise NotLayerwiseError
            if first and hidden.data_ptr() != first[0].data_ptr():
                raise NotLayerwiseError
            first[:] = first or [hidden]
            calls.append(call)
            if len(calls) == len(self.layers):
                raise _CaughtError
            return self._returned(index, hidden)

        with self._replaced(caught):
            try:
                self._whole(tokens)
            except _CaughtError:
                return first[0], calls
        raise NotLayerwiseError

    def run(self, index: int, hidden: Tensor, call: LayerCall) -> Tensor:
        """Return what a layer makes of hidden states."""
        layer = self.layers[index]
        if call.named:
            found = layer(*call.args, **{_HIDDEN: hidden}, **call.options)
        else:
            found = layer(hidden, *call.args, **call.options)
        made: Tensor = found if isinstance(found, Tensor) else found[0]
        return made

    def end(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return the logits [n, L, V] of tokens [n, L] whose last layer has given hidden states."""

        def given(index: int, *_: Any, **__: Any) -> Any:
            return self._returned(index, hidden)

        with self._replaced(given):
            return self._whole(tokens)

    def _whole(self, tokens: Tensor) -> Tensor:
        made = self.model(tokens.to(compute_device()), use_cache=False)
        return cast(Tensor, made.logits)

    def _returned(self, index: int, hidden: Tensor) -> Any:
        further = self.further[index]
        return hidden if further is None else (hidden, *further)

    @contextmanager
    def _replaced(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Within, layers are a function of their number and what they are called with."""

        def own(index: int) -> Callable[..., Any]:
            return lambda *args, **options: forward(index, *args, **options)

        for index, layer in enumerate(self.layers):
            layer.forward = own(index)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward


def _taken(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Tensor, LayerCall]:
    """Take the hidden states out of what a layer is called with."""
    named = _HIDDEN in options
    if not named and not (args and isinstance(args[0], Tensor)):
        raise NotLayerwiseError
    rest = {name: value for name, value in options.items() if name != _HIDDEN}
    if named:
        return options[_HIDDEN], LayerCall(args, rest, named)
    return args[0], LayerCall(args[1:], rest, named)


def layer_lists(model: nn.Module) -> Iterator[nn.ModuleList]:
    """Yield the lists of modules that stand in no other list."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from layer_lists(child)


@torch.no_grad()
def layerwise_model(model: nn.Module, tokens: Tensor) -> LayerwiseModel:
    """Find the layers of a model, by running it on tokens [1, L].

    Raises:
        NotLayerwiseError: they stand in several lists, or one is used more than once.
    """
    used: list[nn.Module] = []
    further: list[tuple[Any, ...] | None] = []

    def watch(layer: nn.Module, _: Any, found: Any) -> None:
        used.append(layer)
        further.append(None if isinstance(found, Tensor) else tuple(found[1:]))

    lists = [list(one) for one in layer_lists(model)]
    hooks = [layer.register_forward_hook(watch) for one in lists for layer in one]
    try:
        model(tokens.to(compute_device()), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    rest, _ = tree_flatten([one for one in further if one is not None])
    if used not in lists or any(isinstance(one, Tensor) for one in rest):
        raise NotLayerwiseError
    return LayerwiseModel(model, used, further)
