"""Stacks of experts that are put together when they are read, and take no memory until then.

Checkpoints have every expert by itself, and transformers stacks those of a layer when it loads
them. Here the parameter gets the shape and a single NaN, and keeps the tensors that it is made of,
which are views of the mapped files. Who reads it by the functions of this module gets its numbers;
who does not gets NaN.

Letters: E experts, R rows, C columns.
"""

from __future__ import annotations

import copy
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
_PLACE = "bitquilt_deferred_stack"
_STACK = (MergeModulelist, {"dim": 0})
_JOIN_ROWS = (Concatenate, {"dim": 1, "num_shards_attribute": None})
_OPERATIONS = ([_STACK], [_STACK, _JOIN_ROWS])
"""What makes a stack of experts; the rows of an expert may come from several matrices."""


@dataclass(frozen=True)
class DeferredStack:
    """A stack [E, R, C] in parts."""

    experts: tuple[tuple[Tensor, ...], ...]
    """Of every expert, matrices whose rows come one after another."""

    def matrix(self, index: int) -> Tensor:
        """Return one expert [R, C]."""
        parts = self.experts[index]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def put_together(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a new stack [E, R, C]; nothing else takes memory meanwhile."""
        rows = sum(len(part) for part in self.experts[0])
        shape = (len(self.experts), rows, self.experts[0][0].shape[1])
        found = torch.empty(shape, dtype=dtype, device=device)
        for own, parts in zip(found, self.experts, strict=True):
            at = 0
            for part in parts:
                own[at : at + len(part)] = part
                at += len(part)
        return found

    def parameter(self) -> nn.Parameter:
        """Return what has the shape, and takes no memory."""
        parts = self.experts[0]
        shape = (len(self.experts), sum(map(len, parts)), parts[0].shape[1])
        nothing = torch.full((), torch.nan, dtype=parts[0].dtype)
        made = nn.Parameter(nothing.expand(shape), requires_grad=False)
        setattr(made, _PLACE, self)
        return made


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
    return stack.put_together(torch.float32, parameter.device)


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
    """Return a model on a device; in a GPU's memory deferred stacks are put together.

    Args:
        model: whose parameters are on the CPU, or on the device.
        device: where it computes.
    """
    if device.type != "cpu":
        for parameter in model.parameters():
            if (stack := _stack_of(parameter)) is not None:
                parameter.data = stack.put_together(parameter.dtype, device)
                _forget(parameter)
    return model.to(device)


def _forget(parameter: Tensor) -> None:
    if _stack_of(parameter) is not None:
        delattr(parameter, _PLACE)
