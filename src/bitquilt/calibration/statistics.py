"""What :mod:`.collect` left, read for one matrix at a time, and the KL that it predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from bitquilt.calibration.block_moments import BlockMoments, input_of
from bitquilt.calibration.packed_moment import DIAGONAL, unpack_moment
from bitquilt.calibration.prediction import embedding_kl, matrix_kl
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.workdir import WorkDir


class CalibrationStats:
    """Hessians and gradient moments that calibration text left of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, work: WorkDir) -> None:
        self.checkpoint = checkpoint
        self.work = work

    @property
    def _gradients(self) -> dict[str, Tensor]:
        return self._saved_gradients

    @cached_property
    def _saved_gradients(self) -> dict[str, Tensor]:
        return self.work.load("gradients")

    def hessian(self, module: str) -> Tensor:
        """Return the mean of x xᵀ, [C, C], over the calibration tokens at a matrix's input.

        It is on the device that is computed on, which unpacks it too: a CPU takes as long for that
        as a GPU for all the rest. In a block, tokens count for the squared gradients of what reads
        the input, and the off-diagonals are shrunk. For the embedding it is the head's, which a
        tied embedding is.
        """
        artefact, key = _place(module)
        with self.work.open(artefact) as handle:
            return unpack_moment(key, _on_device(handle))

    def outputs(self, module: str) -> Tensor | None:
        """Return E[g gᵀ], [R, R], of the gradients at a matrix's output, on the same device.

        Its off-diagonals are shrunk. None for the embedding, the head, matrices of more than
        ``OUTPUTS`` outputs, and those whose off-diagonals do not hold on other text.
        """
        layer = layer_of(module)
        if layer is None or not self.work.has(artefact := f"outputs/{layer}"):
            return None
        with self.work.open(artefact) as handle:
            if f"{module}/{DIAGONAL}" not in handle.keys():  # noqa: SIM118
                return None
            return unpack_moment(module, _on_device(handle))

    def token_weights(self, owner: str) -> Tensor:
        """Return what each token of the calibration text counts for at an input, [T]."""
        with self.work.open(f"weights/{layer_of(owner)}") as handle:
            weights: Tensor = handle.get_tensor(owner)
            return weights

    def shrunk_by(self, owner: str) -> float:
        """Return the share that was taken from the off-diagonals of an input's Hessian."""
        return float(self.work.facts(f"hessians/{layer_of(owner)}")[owner])

    def importance(self, module: str) -> Tensor:
        """Return what an error in each column of a matrix counts for, [C].

        Mean squares of the inputs. An untied embedding has none: its rows are what the first block
        reads, so mean squares of the gradients there.
        """
        if module == EMBEDDING and not self.checkpoint.tied:
            return self._gradients["columns"]
        artefact, key = _place(module)
        with self.work.open(artefact) as handle:
            diagonal: Tensor = handle.get_tensor(f"{key}/{DIAGONAL}")
            return diagonal

    def predicted_kl(
        self, module: str, error: Tensor, hessian: Tensor, rows: slice | Tensor = slice(None)
    ) -> Tensor:
        """Predict the KL, in nats per token, that an error [R, C] in rows of one matrix costs.

        A tied embedding counts as what the first block reads and as the head.

        Returns:
            what each row costs, float64 [R]; they add up.
        """
        gradients, total = self._gradients, error.new_zeros(len(error), device="cpu").double()
        if module == EMBEDDING:
            total += embedding_kl(error, gradients["tokens"][rows], gradients["columns"])
        if module == HEAD or (module == EMBEDDING and self.checkpoint.tied):
            total += matrix_kl(error, hessian, gradients["head"][rows])
        elif module != EMBEDDING:
            total += matrix_kl(error, hessian, gradients[module][rows])
        return total

    def predicted_kl_of_rows(
        self, module: str, costs: Tensor, rows: slice | Tensor = slice(None)
    ) -> Tensor:
        """Predict the KL, in nats per token, of rows of a block's matrix that cost E H Eᵀ [R].

        Returns:
            what each row costs, float64 [R]; they add up.
        """
        return 0.5 * costs.cpu().double() * self._gradients[module][rows].double()


class BlockStats(CalibrationStats):
    """The statistics of one block that are in memory."""

    def __init__(self, checkpoint: Checkpoint, work: WorkDir, moments: BlockMoments) -> None:
        super().__init__(checkpoint, work)
        self._moments = moments

    @property
    def _gradients(self) -> dict[str, Tensor]:
        return self._moments.diagonals

    def hessian(self, module: str) -> Tensor:
        """See :meth:`CalibrationStats.hessian`."""
        return self._moments.hessians[input_of(module)]

    def outputs(self, module: str) -> Tensor | None:
        """See :meth:`CalibrationStats.outputs`."""
        return self._moments.outputs.get(module)

    def importance(self, module: str) -> Tensor:
        """See :meth:`CalibrationStats.importance`."""
        return self.hessian(module).diagonal()


def _on_device(artefact: Any) -> Callable[[str], Tensor]:
    """Read tensors of an open artefact onto the device that is computed on."""
    device = compute_device()
    return lambda name: artefact.get_tensor(name).to(device)


def _place(module: str) -> tuple[str, str]:
    """Return the artefact that has the Hessian of a matrix's input, and its name there."""
    if module in (EMBEDDING, HEAD):
        return "hessians/head", HEAD
    return f"hessians/{layer_of(module)}", input_of(module)
