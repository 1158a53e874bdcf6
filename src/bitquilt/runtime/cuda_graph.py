"""CUDA graphs: many small kernels are recorded once and then launched as one.

Rounding launches some five kernels for every eight columns, and Python takes longer to launch them
than an H100 to run them (docs/decisions/gpu.md). Blocks of columns are alike but for their numbers,
so the second one is recorded as a CUDA graph, and from then on played again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Size, Tensor

TensorFunction = Callable[..., Sequence[Tensor]]
"""A function of tensors; whatever else it reads must stay as it is."""


class Replay:
    """A function of tensors on one device that is called many times, mostly with equal shapes.

    Only one may be in use at a time: all of them write to the same memory.
    """

    def __init__(self, function: TensorFunction) -> None:
        """Wrap a function; its recording is freed with this object."""
        self._function = function
        self._shapes: list[Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the function's results, which are valid until the next call."""
        if tensors[0].device.type != "cuda":
            return self._function(*tensors)
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self._shapes:
            # also what fills caches and sets up libraries, which a recording must not
            self._shapes, self._graph = shapes, None
            return self._function(*tensors)
        if self._graph is None:
            self._record(tensors)
        for kept, tensor in zip(self._inputs, tensors, strict=True):
            kept.copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _record(self, tensors: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        self._outputs = _recorded(self._graph, self._function, self._inputs, _first().pool())


@cache
def _first() -> torch.cuda.CUDAGraph:
    """Return a recording whose memory all others share; else each would leave its own behind."""
    graph = torch.cuda.CUDAGraph()
    _recorded(graph, lambda: [torch.zeros(1, device="cuda")], [], None)
    return graph


@cache
def _stream() -> torch.cuda.Stream:
    """Return the stream that recordings are made on: memory is reused only by the same stream.

    torch hands out the same 32 streams in turn, those of either priority; what copies beside a
    recording has an ordinary one.
    """
    return torch.cuda.Stream(priority=-1)


def _recorded(
    graph: torch.cuda.CUDAGraph, function: TensorFunction, inputs: Sequence[Tensor], memory: Any
) -> Sequence[Tensor]:
    """Record a function; return the tensors that a replay of the graph fills."""
    current, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        # other threads copy what was rounded before, which may go on
        graph.capture_begin(pool=memory, capture_error_mode="thread_local")
        outputs = function(*inputs)
        graph.capture_end()
    current.wait_stream(stream)
    return outputs
