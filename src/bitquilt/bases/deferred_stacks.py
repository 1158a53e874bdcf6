"""Stacks of experts that are put together when they are read, and take no memory until then.

Checkpoints have every expert by itself, and transformers stacks those of a layer when it loads
them. Here the parameter gets the shape and a single NaN, and keeps the tensors that it is made of,
which are views of the mapped files. Who reads it by the functions of this module gets its numbers;
who does not gets NaN. A GPU has a few stacks at a time, in 16 bits: those that were read last.

Letters: E experts, R rows, C columns.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)

HALF_TYPES = (torch.bfloat16, torch.float16)
"""What is lent (:mod:`bitquilt.bases.lent_weights`), and deferred therefore."""
LAST_SHARE = 32
"""A GPU keeps the stacks that were read last in one part in so many of its free memory. Those of a
layer are read several times for each batch of windows (docs/decisions/two-passes.md)."""
PIECE_BYTES = 64 << 20
"""So much of a stack goes to a GPU at once, from pinned memory: six times as fast as from files."""
_LEAST_KEPT = 2
"""As many stacks are kept however large they are: experts take turns at two."""
_PLACE, _LAST = "bitquilt_deferred_stack", "bitquilt_last_stacks"
_STACK = (MergeModulelist, {"dim": 0})
_JOIN_ROWS = (Concatenate, {"dim": 1, "num_shards_attribute": None})
_OPERATIONS = ([_STACK], [_STACK, _JOIN_ROWS])
"""What makes a stack of experts; the rows of an expert may come from several matrices."""


@dataclass(frozen=True)
class DeferredStack:
    """A stack [E, R, C] in parts."""

    experts: tuple[tuple[Tensor, ...], ...]
    """Of every expert, matrices whose rows come one after another."""

    @property
    def dtype(self) -> torch.dtype:
        """What the files have, of 16 bits."""
        return self.experts[0][0].dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, R, C."""
        parts = self.experts[0]
        return len(self.experts), sum(map(len, parts)), parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """What the stack takes in 16 bits."""
        return math.prod(self.shape) * self.dtype.itemsize

    def matrix(self, index: int) -> Tensor:
        """Return one expert [R, C]."""
        parts = self.experts[index]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def put_together(self) -> Tensor:
        """Return a new stack [E, R, C], float32; nothing else takes memory meanwhile."""
        found = torch.empty(self.shape)
        self.fill(found, 0)
        return found

    def fill(self, experts: Tensor, start: int) -> None:
        """Copy the experts from ``start`` on to a tensor of as many as are wanted, [e, R, C]."""
        wanted = self.experts[start : start + len(experts)]
        for own, parts in zip(experts, wanted, strict=True):
            at = 0
            for part in parts:
                own[at : at + len(part)] = part
                at += len(part)

    def nothing(self, device: torch.device) -> Tensor:
        """Return what has the shape, and takes no memory."""
        return torch.full((), torch.nan, dtype=self.dtype, device=device).expand(self.shape)

    def parameter(self) -> nn.Parameter:
        """Return the parameter that keeps the stack."""
        made = nn.Parameter(self.nothing(torch.device("cpu")), requires_grad=False)
        setattr(made, _PLACE, self)
        return made


class LastStacks:
    """The stacks that were read last, put together in 16 bits on a device."""

    def __init__(self, device: torch.device, most: int) -> None:
        """Keep none yet.

        Args:
            device: where the stacks are read.
            most: bytes of those that are kept, if these are more than two.
        """
        self.device, self._most = device, most
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def numbers(self, stack: DeferredStack) -> Tensor:
        """Return a stack [E, R, C], which others read, too."""
        if (key := id(stack)) not in self._kept:
            while len(self._kept) >= _LEAST_KEPT and self.nbytes + stack.nbytes > self._most:
                self._kept.popitem(last=False)
            self._kept[key] = self._read(stack)
        self._kept.move_to_end(key)
        return self._kept[key]

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(one.nbytes for one in self._kept.values())

    def _read(self, stack: DeferredStack) -> Tensor:
        """Put a stack together; some experts are copied to a GPU while the CPU gathers others.

        torch knows until when pinned memory is read, and takes other memory for the next piece.
        """
        found = torch.empty(stack.shape, dtype=stack.dtype, device=self.device)
        pinned = self.device.type != "cpu"
        step = max(1, PIECE_BYTES // found[0].nbytes)
        for start in range(0, len(found), step):
            own = found[start : start + step]
            piece = torch.empty(own.shape, dtype=own.dtype, pin_memory=pinned)
            stack.fill(piece, start)
            own.copy_(piece, non_blocking=True)
        return found


class StackedLater(ConversionOps):  # type: ignore[misc]
    """What a loader does to the experts of a layer, only that their stack is deferred."""

    def __init__(self, operations: Sequence[ConversionOps]) -> None:
        """Take the operations of a loader, which are used where a stack cannot be deferred."""
        self._operations = operations

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **options: Any,
    ) -> dict[str, Any]:
        """Return the parameter by its pattern; see transformers."""
        parts = [input_dict.get(pattern, []) for pattern in source_patterns]
        joins = len(self._operations) > 1
        if joins == (len(parts) > 1) and len(target_patterns) == 1 and _can_be_deferred(parts):
            input_dict.clear()
            stack = DeferredStack(tuple(zip(*parts, strict=True)))
            return {target_patterns[0]: stack.parameter()}
        for operation in self._operations:
            input_dict = operation.convert(
                input_dict,
                source_patterns=source_patterns,
                target_patterns=target_patterns,
                **options,
            )
        return input_dict


def deferring(transforms: Sequence[Any]) -> list[Any]:
    """Return what a loader does to tensors of files, with stacks of experts deferred.

    Args:
        transforms: transformers' ``WeightConverter`` and others; they stay as they are.
    """
    return [_deferring(one) for one in transforms]


def _deferring(transform: Any) -> Any:
    if not isinstance(transform, WeightConverter):
        return transform
    if [(type(one), vars(one)) for one in transform.operations] not in _OPERATIONS:
        return transform
    own = copy.deepcopy(transform)
    own.operations = [StackedLater(own.operations)]
    return own


def _can_be_deferred(parts: Sequence[Any]) -> bool:
    """Tell whether lists of tensors are matrices of the same experts, of 16 bits and one width."""
    if not all(isinstance(own, list) and own and len(own) == len(parts[0]) for own in parts):
        return False
    first = parts[0][0]
    return first.dtype in HALF_TYPES and all(
        one.ndim == 2
        and (one.dtype, one.device, one.shape[1]) == (first.dtype, first.device, first.shape[1])
        and len(one) == len(own[0])
        for own in parts
        for one in own
    )


def _stack_of(parameter: Tensor) -> DeferredStack | None:
    return cast("DeferredStack | None", getattr(parameter, _PLACE, None))


def float_numbers(parameter: Tensor) -> Tensor:
    """Return the numbers of a parameter in new memory, float32."""
    stack = _stack_of(parameter)
    if stack is None:
        return parameter.detach().to(torch.float32, copy=True)
    last: LastStacks | None = getattr(parameter, _LAST, None)
    if last is None:
        return stack.put_together()
    return last.numbers(stack).to(torch.float32)


def matrix_of(parameter: Tensor, index: int) -> Tensor:
    """Return a matrix [R, C] of a parameter [R, C] or [E, R, C]; it may be a view."""
    stack = _stack_of(parameter)
    if stack is None:
        whole = parameter.detach()
        return whole.reshape(-1, *whole.shape[-2:])[index]
    return stack.matrix(index)


def keep_float(parameter: Tensor) -> None:
    """Make a parameter float32 for good."""
    parameter.data = float_numbers(parameter)
    _forget(parameter)


def moved_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model on a device, where deferred stacks are read from then on.

    Args:
        model: whose parameters are on the CPU, or on the device.
        device: where it computes.
    """
    if device.type != "cpu":
        free, _ = torch.cuda.mem_get_info()
        read_with(model, LastStacks(device, free // LAST_SHARE))
    return model.to(device)


def read_with(model: nn.Module, last: LastStacks) -> None:
    """Have the deferred stacks of a model read on a device, but for those that are already.

    Args:
        model: whose deferred parameters go to the device; they stay deferred.
        last: keeps some stacks there.
    """
    for parameter in model.parameters():
        stack = _stack_of(parameter)
        if stack is not None and not hasattr(parameter, _LAST):
            parameter.data = stack.nothing(last.device)
            setattr(parameter, _LAST, last)


def _forget(parameter: Tensor) -> None:
    for place in (_PLACE, _LAST):
        if hasattr(parameter, place):
            delattr(parameter, place)
