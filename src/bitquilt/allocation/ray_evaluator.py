"""The evaluator on many machines: Ray brings allocations to workers, and again if a worker dies.

Every allocation is one task. Workers keep an evaluator of their own; what it needs, the matrices in
their codes and the original's hidden states, comes from Ray's object store, once to each machine.
Results are taken in the order of the tasks, whichever arrives first, and all machines
multiply alike, so that a search finds what it finds on one machine.

Ray is imported where it is used: it is an extra.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.allocation.evaluator import Evaluator
from bitquilt.errors import UserError
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation, Packed, PackedSource
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.extras import require_ray
from bitquilt.runtime.progress import Progress

CPUS = 4
"""Cores that a worker takes where there are no GPUs; it takes all of a machine with fewer."""
RETRIES = 3
"""Workers that may die on the same allocation before the search fails."""

Ref = Any
"""A reference to something in Ray's object store."""


class RayEvaluator:
    """KL of allocations, token by token, as :class:`.evaluator.Evaluator` measures it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        packed: PackedSource,
        address: str,
        precision: str,
        progress: Progress,
        cpus: int = CPUS,
    ) -> None:
        """Connect to the cluster.

        Args:
            checkpoint: the model.
            packed: its matrices on the types that allocations will name.
            address: the address of a cluster; if empty, the one that runs here, or else a new one.
            precision: how workers multiply, one of :data:`bitquilt.runtime.products.PRODUCTS`.
            progress: told what the cluster has.
            cpus: cores that a worker takes where there are no GPUs.

        Raises:
            UserError: Ray is not installed, or there is no cluster at that address.
        """
        self._ray = _connected(address)
        nodes = self._ray.nodes()
        kind, size = _worker(nodes, cpus)
        total = int(self._ray.cluster_resources().get(kind, 0) // size)
        progress.say(
            f"Ray: {_count(total, 'worker')} on {_count(len(nodes), 'machine')} measure mixes of "
            "types"
        )
        resources = {"num_gpus": size} if kind == "GPU" else {"num_cpus": size}
        self._task = self._ray.remote(_kl).options(max_retries=RETRIES, **resources)
        self._shipped = _ship(self._ray, checkpoint, precision)
        self._model = self._ray.put(self._shipped)
        self._packed = packed
        self._cells: dict[tuple[str, str], Ref] = {}
        self._teacher: Teacher | None = None

    def multiply_exactly(self) -> None:
        """Let workers multiply in float32 from now on."""
        self._shipped = replace(self._shipped, precision="highest")
        self._model = self._ray.put(self._shipped)

    def __call__(
        self, teacher: Teacher, allocations: Sequence[Allocation], windows: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return KL(original ‖ quantized) [K, N, L − 1] in nats, as an :class:`.Evaluator` does.

        Raises:
            UserError: an allocation cannot be measured on any machine.
        """
        text = self._text_of(teacher)
        tasks = [
            # in lists references stay references, and a worker fetches only what it has not got
            self._task.remote(
                [self._model, text], self._cells_of(allocation), dict(allocation), list(windows)
            )
            for allocation in allocations
        ]
        try:
            return np.stack(self._ray.get(tasks))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"Ray could not measure a mix of types: {reason}; make sure that every machine "
                "has this version of bitquilt and enough memory, and give the same command again"
            ) from error
        except BaseException:  # Ctrl-C and SIGTERM: nobody waits for the others
            for task in tasks:
                self._ray.cancel(task)
            raise

    def _text_of(self, teacher: Teacher) -> Ref:
        if teacher is not self._teacher:
            self._teacher = teacher
            parts = teacher.tokens, teacher.hidden, teacher.head
            self._text = self._ray.put([_Sent.of(part) for part in parts])
        return self._text

    def _cells_of(self, allocation: Allocation) -> dict[str, Ref]:
        for cell in allocation.items():
            if cell not in self._cells:
                parts = self._packed(*cell).items()
                self._cells[cell] = self._ray.put({name: _Sent.of(part) for name, part in parts})
        return {module: self._cells[module, qtype] for module, qtype in allocation.items()}


def _ship(ray: Any, checkpoint: Checkpoint, precision: str) -> _Shipped:
    """Put what is not a matrix where workers find it."""
    others = checkpoint.shapes.keys() - {f"{module}.weight" for module in checkpoint.matrices}
    plain = {name: ray.put(_Sent.of(checkpoint.load(name))) for name in sorted(others)}
    return _Shipped(replace(checkpoint, reader=_no_file), plain, precision)


def _connected(address: str) -> Any:
    """Return the module ``ray``, connected to a cluster."""
    require_ray()
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it tells its makers
    if not ray.is_initialized():
        try:
            ray.init(address or None, logging_level="error", log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"there is no Ray cluster at {address}: {reason}; start one with `ray start "
                "--head`, or give --ray without an address"
            ) from None
    return ray


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _worker(nodes: Sequence[Mapping[str, Any]], cpus: int) -> tuple[str, int]:
    """Return what a worker takes of a machine: a GPU where there is any, else some cores."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(has.get("GPU") for has in alive):
        return "GPU", 1
    return "CPU", max(1, min(cpus, *(int(has.get("CPU", 0)) for has in alive)))


@dataclass(frozen=True)
class _Sent:
    """A tensor as bytes of numpy's, which workers see where they are; Ray copies torch's own."""

    data: NDArray[np.uint8]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Sent:
        flat = tensor.cpu().contiguous().flatten()
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        """Return the tensor that was sent, which must not be written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(self.data).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Shipped:
    """All that a worker makes its evaluator from."""

    checkpoint: Checkpoint
    """The model without its files."""
    plain: Mapping[str, Ref]
    """Name → the tensor, for all tensors that are not quantized matrices."""
    precision: str


def _no_file(name: str) -> Any:
    raise KeyError(name)


class _Worker:
    """An evaluator in a worker's process."""

    def __init__(self, shipped: _Shipped) -> None:
        import ray

        self.cells: dict[tuple[str, str], Ref] = {}
        """References to the matrices that allocations have named so far."""

        def load(name: str) -> Any:
            return ray.get(shipped.plain[name]).tensor()

        def packed(module: str, qtype: str) -> Packed:
            parts: Mapping[str, _Sent] = ray.get(self.cells[module, qtype])
            return {name: part.tensor() for name, part in parts.items()}

        self.evaluate = Evaluator(replace(shipped.checkpoint, reader=load), packed)
        self.evaluate.precision = shipped.precision


@lru_cache(maxsize=1)
def _worker_for(model: Ref) -> _Worker:
    """Return this process's worker for a search; the next search has another."""
    import ray

    shipped: _Shipped = ray.get(model)
    return _Worker(shipped)


@lru_cache(maxsize=1)
def _teacher_for(text: Ref) -> Teacher:
    import ray

    tokens, hidden, head = (part.tensor() for part in ray.get(text))
    return Teacher(tokens, hidden.to(compute_device()), head.to(compute_device()))


def _kl(
    shared: Sequence[Ref], cells: Mapping[str, Ref], allocation: Allocation, windows: Sequence[int]
) -> NDArray[np.float32]:
    """Measure one allocation in a worker: KL [N, L − 1]."""
    model, text = shared
    worker = _worker_for(model)
    worker.cells.update({(module, allocation[module]): ref for module, ref in cells.items()})
    found: NDArray[np.float32] = worker.evaluate(_teacher_for(text), [allocation], windows)[0]
    return found
