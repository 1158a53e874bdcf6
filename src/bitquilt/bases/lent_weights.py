"""Weights in the precision that they are published in, in float32 only while they are used.

A model that is computed in float32 has not to be in memory in it. Its large parameters stay what
and where they are: two bytes a weight, mapped from the checkpoint's files where the loader took
them from there as they are. When a module computes, its own are lent in float32, which is exact,
and taken back. What autograd keeps of them for the way back is their place, and they are lent again
there. So memory holds the float32 numbers of a few modules, and what a model computes is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bitquilt.bases.base_file import LEAST_COLUMNS
from bitquilt.bases.deferred_stacks import HALF_TYPES, float_numbers, keep_float
from bitquilt.errors import UserError

SMALL_WEIGHTS = 1 << 20
"""Parameters of fewer weights, and those that are no matrices, are in float32 always: routers,
norms, convolutions. Others than the module that has them look at these, too, and adapt to them."""
_Done = TypeVar("_Done")
_PLACE = "bitquilt_lent_weights"
_LENT_BACK = 2
"""So many parameters are in float32 at once on the way back: experts take turns at two stacks."""


@dataclass(frozen=True)
class LentPlace:
    """What autograd keeps of a lent parameter: where the numbers are, and which of them."""

    parameter: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class LentWeights:
    """The large parameters of a model, lent to the modules that have them while these compute."""

    def __init__(self, model: nn.Module, least: int) -> None:
        """Take the parameters of 16 bits; all that is small becomes float32 for good.

        Args:
            model: as it was loaded.
            least: weights of a parameter that is lent.
        """
        self.known: dict[int, tuple[str, Tensor]] = {}
        """Where a lent parameter is in memory → its name, and its numbers in float32."""
        self.saved_bytes = 0
        """What autograd kept of everything else since :meth:`saved` was entered, in all."""
        self.others: Callable[[str], Tensor | None] = lambda _: None
        """Gives the numbers that a parameter is lent with instead of its own, by its name."""
        self._kind = type(model).__name__
        self._names = {id(one): name for name, one in model.named_parameters()}
        self._originals: dict[int, nn.Parameter] = {}
        self._borrowed: dict[int, dict[str, nn.Parameter]] = {}
        self._back: OrderedDict[int, Tensor] = OrderedDict()
        self._all = [one for one in model.parameters() if one.dtype in HALF_TYPES]
        for tensor in [*model.buffers(), *model.parameters()]:
            sides = tensor.shape[-2:] if tensor.ndim > 1 else (0,)
            if tensor.dtype in HALF_TYPES and (
                tensor.numel() < least or min(sides) < LEAST_COLUMNS
            ):
                keep_float(tensor)
        for module in model.modules():
            if _of_half(module):
                module.register_forward_pre_hook(self._lend)
                module.register_forward_hook(self._take_back, always_call=True)

    def saved(self) -> AbstractContextManager[Any]:
        """While it is entered, autograd keeps the places of lent parameters, not their numbers."""
        self.saved_bytes = 0
        return saved_tensors_hooks(self._pack, self._unpack)

    @property
    def lent(self) -> set[str]:
        """The names of the parameters that are lent, and not in float32 always."""
        return {self._names[id(one)] for one in self._all if one.dtype in HALF_TYPES}

    def keep(self) -> bool:
        """Have all parameters in float32 for good: a module looks at one from outside.

        Returns:
            whether any was not.
        """
        lent = [one for one in self._all if one.dtype in HALF_TYPES]
        for parameter in lent:
            keep_float(parameter)
        return bool(lent)

    def tried(self, does: Callable[[], _Done]) -> _Done:
        """Do what runs the model, once more after :meth:`keep` if it fails with lent parameters.

        Raises:
            UserError: the model does not run.
        """
        try:
            return does()
        except Exception as error:  # whatever the model's own code raises
            if self.keep():
                return self.tried(does)
            if isinstance(error, UserError | MemoryError | torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"transformers' {self._kind} does not run with these weights and this config.json "
                f"({reason}); download the model again"
            ) from error

    def _lend(self, module: nn.Module, _: Any) -> None:
        own = self._borrowed[id(module)] = _of_half(module)
        for name, parameter in own.items():
            other = self.others(self._names.get(id(parameter), ""))
            numbers = float_numbers(parameter) if other is None else other
            lent = nn.Parameter(numbers, requires_grad=False)
            module._parameters[name] = lent
            self._know(parameter, lent)

    def _take_back(self, module: nn.Module, *_: Any) -> None:
        for name, parameter in self._borrowed.pop(id(module), {}).items():
            lent = module._parameters[name]
            assert lent is not None
            self._forget(lent)
            module._parameters[name] = parameter

    def _know(self, parameter: nn.Parameter, lent: Tensor) -> None:
        address = lent.untyped_storage().data_ptr()
        self._originals[address] = parameter
        if (name := self._names.get(id(parameter))) is not None:
            self.known[address] = (name, lent)

    def _forget(self, lent: Tensor) -> None:
        address = lent.untyped_storage().data_ptr()  # which other tensors will have
        del self._originals[address]
        self.known.pop(address, None)

    def _pack(self, tensor: Tensor) -> Tensor | LentPlace:
        parameter = self._originals.get(tensor.untyped_storage().data_ptr())
        if parameter is None:
            self.saved_bytes += tensor.nbytes
            return tensor
        return LentPlace(parameter, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, kept: Tensor | LentPlace) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        key = id(kept.parameter)
        if key not in self._back:
            while len(self._back) >= _LENT_BACK:
                self._forget(self._back.popitem(last=False)[1])
            self._back[key] = float_numbers(kept.parameter)
            self._know(kept.parameter, self._back[key])
        self._back.move_to_end(key)
        return self._back[key].as_strided(kept.size, kept.stride, kept.offset)

    def end_window(self) -> None:
        """Give up what was lent on the way back."""
        while self._back:
            self._forget(self._back.popitem()[1])


def lent_weights(model: nn.Module, least: int = SMALL_WEIGHTS) -> LentWeights:
    """Return what lends the parameters of a model, from now on if it did not yet.

    Args:
        model: as it was loaded.
        least: weights of a parameter that is lent.
    """
    if not hasattr(model, _PLACE):
        setattr(model, _PLACE, LentWeights(model, least))
    found: LentWeights = getattr(model, _PLACE)
    return found


def _of_half(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters of 16 bits, by their names in it."""
    own = module._parameters.items()
    return {name: one for name, one in own if one is not None and one.dtype in HALF_TYPES}
