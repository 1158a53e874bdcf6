"""The second moments of one block's inputs and output gradients: summed, then kept or used at once.

Letters: N windows, L tokens in a window, T = N·L tokens, R outputs and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bitquilt.calibration.output_shrinkage import shrunk_outputs
from bitquilt.calibration.packed_moment import mirrored, pack_moment, slabs
from bitquilt.calibration.shrinkage import Moments
from bitquilt.runtime.workdir import WorkDir

SUM_SLABS = 4
"""A second moment is symmetric: cut into so many slabs, it takes five of eight products."""
OUTPUTS = 2048
"""Matrices with at most so many outputs have a B; of others only its diagonal is kept."""
SHARED_INPUTS = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}
"""Matrix → the matrix that reads the same input; one Hessian serves both."""


def input_of(module: str) -> str:
    """Return the module under whose name the Hessian of this module's input is kept."""
    for reader, owner in SHARED_INPUTS.items():
        if module.endswith(reader):
            return module.removesuffix(reader) + owner
    return module


@dataclass(frozen=True, kw_only=True)
class BlockMoments:
    """What calibration text says of one block; moments are on the device that is computed on."""

    layer: int
    hessians: dict[str, Tensor]
    """Input → H [C, C], its off-diagonals shrunk."""
    shares: dict[str, float]
    """Input → the share that was taken from them."""
    outputs: dict[str, Tensor]
    """Matrix with few outputs → B [R, R], its off-diagonals shrunk; only where any of them hold."""
    output_shares: dict[str, float]
    """Matrix with few outputs → the share that was taken from them; 1 where none hold."""
    weights: dict[str, Tensor]
    """Input → ‖g‖² of each token [T], in the order of the text."""
    diagonals: dict[str, Tensor]
    """Matrix → E[g²] of its outputs [R], on the CPU."""


class MomentKeeper(Protocol):
    """Takes the moments of blocks, one block at a time."""

    def wants(self, layer: int) -> bool:
        """Tell whether the moments of a block are needed."""

    def keep(self, moments: BlockMoments) -> None:
        """Take those of a block that is wanted."""


@dataclass(frozen=True)
class SavedMoments:
    """Saves moments in a work directory, for as many formats and budgets as are asked for."""

    work: WorkDir

    def wants(self, layer: int) -> bool:
        """Tell whether an earlier run has not saved them."""
        return not self.work.has(f"weights/{layer}")

    def keep(self, moments: BlockMoments) -> None:
        """Save them, packed."""
        hessians: dict[str, Tensor] = {}
        for name, hessian in moments.hessians.items():
            hessians |= pack_moment(name, hessian)
        facts = {name: f"{share:g}" for name, share in moments.shares.items()}
        self.work.save(f"hessians/{moments.layer}", hessians, facts)
        outputs: dict[str, Tensor] = {}
        for name, moment in moments.outputs.items():
            outputs |= pack_moment(name, moment)
        if outputs:  # of wide matrices alone there are none
            facts = {name: f"{share:g}" for name, share in moments.output_shares.items()}
            self.work.save(f"outputs/{moments.layer}", outputs, facts)
        weights = {name: own.cpu() for name, own in moments.weights.items()}
        self.work.save(f"weights/{moments.layer}", weights, {})


def add_moment(moment: Tensor, x: Tensor) -> None:
    """Add xᵀ x of rows [T, C] to a moment [C, C], which :func:`mirrored` then completes."""
    for own, on in slabs(x.shape[1], SUM_SLABS):
        moment[own, on].addmm_(x[:, own].T, x[:, on])


class BlockSums:
    """Sums the moments of one block's inputs and output gradients, batch by batch."""

    def __init__(self, layer: int, wanted: bool) -> None:
        """``wanted`` is false where only the diagonals are: the rest is there from before."""
        self.layer, self.wanted = layer, wanted
        self._tokens = 0
        self._fold = 0
        self._inputs: dict[str, Tensor] = {}  # of the batch at hand, [T, C]
        self._squares: dict[str, Tensor] = {}  # Σ g² over the readers of an input, [T]
        self._hessians: dict[str, Moments] = {}
        self._outputs: dict[str, Moments] = {}
        self._diagonals: dict[str, Tensor] = {}
        self._weights: dict[str, list[Tensor]] = {}

    def watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        """Return a hook on a linear layer's forward pass."""

        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            # [n, L, C] → [T, C]; either may be in bfloat16
            self._inputs[input_of(name)] = inputs[0].detach().flatten(0, -2).float()
            output.register_hook(lambda g: self._gradient(name, g.flatten(0, -2).float()))

        return hook

    def _gradient(self, name: str, g: Tensor) -> None:
        """Take the gradient [T, R] of a linear layer's output."""
        square, owner = g.square(), input_of(name)
        self._diagonals[name] = self._diagonals.get(name, 0) + square.sum(0)
        self._squares[owner] = self._squares.get(owner, 0) + square.sum(1)
        if self.wanted and g.shape[1] <= OUTPUTS:
            if name not in self._outputs:
                self._outputs[name] = Moments(g)
            moments = self._outputs[name]
            add_moment(moments.sums[self._fold], g)
            moments.weights[self._fold] += len(g)

    def begin(self, fold: int) -> None:
        """Expect a batch, which is of one fold."""
        self._fold = fold

    def add(self) -> None:
        """Add the batch that has gone back."""
        fold = self._fold
        self._tokens += len(next(iter(self._inputs.values())))
        if self.wanted:
            for name, x in self._inputs.items():
                moments = self._hessians.setdefault(name, Moments(x))
                square = self._squares[name]
                add_moment(moments.sums[fold], x * square.sqrt().unsqueeze(1))
                moments.weights[fold] += float(square.double().sum())
                self._weights.setdefault(name, []).append(square)
        self._inputs.clear()
        self._squares.clear()

    def join(self, other: BlockSums) -> None:
        """Add what was summed of the same block over other text, maybe on another device."""
        self._tokens += other._tokens
        for name, theirs in other._hessians.items():
            self._hessians[name].join(theirs)
        for name, theirs in other._outputs.items():
            self._outputs[name].join(theirs)
        for name, total in other._diagonals.items():
            self._diagonals[name] += total.to(self._diagonals[name].device)
        for name, parts in other._weights.items():
            own_parts = self._weights[name]
            own_parts += [part.to(own_parts[0].device, copy=True) for part in parts]

    @property
    def nbytes(self) -> int:
        """The bytes of the second moments; all else is small."""
        moments = (*self._hessians.values(), *self._outputs.values())
        return sum(total.nbytes for own in moments for total in own.sums)

    def diagonals(self) -> dict[str, Tensor]:
        """Return E[g²] of the outputs of each matrix, [R], on the CPU."""
        return {name: (total / self._tokens).cpu() for name, total in self._diagonals.items()}

    def moments(self, place: Tensor) -> BlockMoments:
        """Return what was summed; the sums of each fold are gone then.

        Args:
            place: where each window of the text stands among those that were read, int64 [N];
                those that were read elsewhere come after this process's own.
        """
        hessians: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        for name, moments in _taken(self._hessians):
            hessians[name], shares[name] = moments.shrunk()
        outputs: dict[str, Tensor] = {}
        output_shares: dict[str, float] = {}
        for name, moments in _taken(self._outputs):
            own, output_shares[name] = shrunk_outputs(moments)
            if output_shares[name] < 1:
                outputs[name] = own
        weights = {
            # [T] -> [N, L], in the order of the text, and back
            name: torch.cat(parts).unflatten(0, (len(place), -1))[place].flatten()
            for name, parts in self._weights.items()
        }
        return BlockMoments(
            layer=self.layer,
            hessians=hessians,
            shares=shares,
            outputs=outputs,
            output_shares=output_shares,
            weights=weights,
            diagonals=self.diagonals(),
        )


def _taken(sums: dict[str, Moments]) -> Iterator[tuple[str, Moments]]:
    """Yield sums, whole on both sides of the diagonal, which are kept here no longer."""
    while sums:
        name, moments = sums.popitem()
        for total in moments.sums:
            mirrored(total, SUM_SLABS)
        yield name, moments
