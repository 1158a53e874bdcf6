"""Many small kernels launched as one: a recording of what a function did on a GPU.

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
"""Of tensors alone; what else it looks at stays as it is."""


class Replay:
    """A function of tensors on one device, called many times, mostly with equal shapes.

    One at a time: all write to the same memory.
    """

    def __init__(self, function: TensorFunction) -> None:
        """Wrap a function; the recording goes when this object does."""
        self._function = function
        self._shapes: list[Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The function's results; they hold until the next call."""
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
    """A recording that stays, for its memory: what others write to would else stay behind each."""
    graph = torch.cuda.CUDAGraph()
    _recorded(graph, lambda: [torch.zeros(1, device="cuda")], [], None)
    return graph


@cache
def _stream() -> torch.cuda.Stream:
    """Where recordings are made; memory is taken again only by the stream that had it before.

    torch hands out the same 32 streams in turn, those of either priority; what copies beside a
    recording has an ordinary one.
    """
    return torch.cuda.Stream(priority=-1)


def _recorded(
    graph: torch.cuda.CUDAGraph, function: TensorFunction, inputs: Sequence[Tensor], memory: Any
) -> Sequence[Tensor]:
    """What the function will have computed once the graph is played."""
    current, stream = torch.cuda.current_stream(), _stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        # other threads copy what was rounded before, which may go on
        graph.capture_begin(pool=memory, capture_error_mode="thread_local")
        outputs = function(*inputs)
        graph.capture_end()
    current.wait_stream(stream)
    return outputs
