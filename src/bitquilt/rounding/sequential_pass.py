"""Sequential correction of a decided mix: every block makes up for the rounding of those before it.

A second pass over calibration text moves two streams of hidden states through the blocks, that of
the original model and that of the quantized one. The matrices of a block are rounded again one
input after another, each corrected for what its input has become (:mod:`.gptaq`).
Where the bank's rounding serves better, by the error against the original's outputs, it stays.

The bank's rounding that is compared is the one a file would have without this pass: polished, where
:func:`bitquilt.rounding.round_layers.polish_layers` has been there.

One artefact per block, ``sequential/<allocation and text>/<block>``: the parts of each matrix under
``<module>/<part>``, and as facts module → ``corrected`` or ``bank``, the rounding that was kept.
A block that is there is not done again. Memory is one block of each model, the moments of one input
and the two streams.

Letters: N windows, L tokens in a window, T = N·L tokens, D model width, R rows, C columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models.architectures import architecture_of
from bitquilt.models.blockwise import BlockwiseModel, batch_tokens, batches
from bitquilt.models.names import in_block, layer_of
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.rounding.gptaq import Drift, corrected
from bitquilt.rounding.hessian import factorize
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.output_feedback import outputs_of
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.rounding.staged_block import ADDED, StagedBlock
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class SequentialPass:
    """The matrices of a mix, corrected block by block; those outside of blocks are the bank's."""

    bank: LayerBank
    allocation: Allocation
    folder: str
    """The folder of its artefacts in the bank's work directory."""

    def corrects(self, module: str) -> bool:
        """Tell whether a matrix is rounded again: those of blocks are, but not plain floats."""
        return layer_of(module) is not None and not isinstance(
            qtypes.get(self.allocation[module]), Float
        )

    def packed(self, module: str, qtype: str) -> Packed:
        """Return a matrix on the type that the mix gives it, as :meth:`LayerBank.polished` does."""
        if not self.corrects(module):
            return self.bank.polished(module, qtype)
        return self.bank.work.load_under(self.artefact(_layer(module)), f"{module}/")

    def artefact(self, layer: int) -> str:
        """Return the name of a block's artefact."""
        return f"{self.folder}/{layer}"

    def weight(self, name: str) -> Tensor:
        """Load a tensor of the quantized model; a block that is not done yet has the original's."""
        module = name.removesuffix(".weight")
        if module not in self.allocation or (
            self.corrects(module) and not self.done(_layer(module))
        ):
            return self.bank.checkpoint.load(name)
        qtype = self.allocation[module]
        return qtypes.get(qtype).dequantize(self.packed(module, qtype))

    def done(self, layer: int) -> bool:
        """Tell whether a block has been corrected."""
        return self.bank.work.has(self.artefact(layer))


def _layer(module: str) -> int:
    """Return the block that a matrix is in, which has to be one."""
    layer = layer_of(module)
    assert layer is not None, module
    return layer


@torch.no_grad()
def round_sequentially(
    bank: LayerBank,
    allocation: Allocation,
    tokens: Tensor,
    rounding: str,
    progress: Progress,
) -> SequentialPass:
    """Correct a mix block by block, starting from the bank's matrices.

    Args:
        bank: the matrices as rounded one by one.
        allocation: the decided mix, for every matrix of the checkpoint.
        tokens: int64 [N, L], the text that the bank's statistics are of, of at least two windows.
        rounding: one of :data:`bitquilt.rounding.METHODS`.
        progress: advances after each block; told by name what could not be rounded as usual.
    """
    sequential = SequentialPass(bank, allocation, f"sequential/{_key(allocation, tokens)}")
    plain = architecture_of(bank.checkpoint.config).plain_residual
    models = BlockwiseModel(bank.checkpoint), BlockwiseModel(bank.checkpoint, sequential.weight)
    streams = tuple(model.embed(tokens) for model in models)
    for layer in range(bank.checkpoint.layers):
        blocks = tuple(
            StagedBlock(model, layer, stream) for model, stream in zip(models, streams, strict=True)
        )
        if not sequential.done(layer):
            pair = _Pair(layer, blocks, plain, bank.statistics)
            _correct_block(sequential, pair, rounding, progress)
        streams = tuple(block.finish() for block in blocks)
        progress.advance()
    return sequential


def _key(allocation: Allocation, tokens: Tensor) -> str:
    """Name what a correction depends on, besides the settings of the work directory."""
    digest = hashlib.sha256(json.dumps(sorted(allocation.items())).encode())
    digest.update(tokens.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Pair:
    """One block in the original and in the quantized model, and the hidden states before it."""

    def __init__(
        self,
        layer: int,
        blocks: tuple[StagedBlock, ...],
        plain_residual: bool,
        statistics: CalibrationStats,
    ) -> None:
        """Take a block.

        Args:
            layer: its number.
            blocks: of the original and of the quantized model, both with the original weights.
            plain_residual: whether the outputs of :data:`ADDED` are added as they are.
            statistics: say what each token counts for.
        """
        self.layer = layer
        self._statistics = statistics
        self._plain_residual = plain_residual
        self._blocks = blocks

    def weight(self, module: str) -> Tensor:
        """Return the original matrix [R, C]."""
        return self._blocks[0].linear(module).weight

    def replace(self, module: str, matrix: Tensor) -> None:
        """Give the quantized block a rounded matrix [R, C]."""
        self._blocks[1].linear(module).weight = nn.Parameter(matrix, requires_grad=False)

    def drifts(self, module: str) -> tuple[Drift, Drift]:
        """Return how what a matrix reads drifts, over either half of the windows."""
        (x, h), (seen, there) = (block.read(module) for block in self._blocks)
        # [T] -> [N, L]
        weights = self._statistics.token_weights(module).to(x).unflatten(0, x.shape[:2])
        added = in_block(module) in ADDED and self._plain_residual
        lacking = h - there if added else h.new_zeros(*h.shape[:2], 1)
        kept = 1 - self._statistics.shrunk_by(module)

        def over(*half: Tensor) -> Drift:
            drifts = []
            for rows in batches(half[0], batch_tokens(half[0].shape[2])):
                # [n, L, …] -> [n · L, …]
                one, other, missing, own = (part[rows].flatten(0, 1) for part in half)
                drifts.append(Drift.of(one, other, missing, own, kept))
            return reduce(add, drifts)

        first, second = zip(*(p.tensor_split(2) for p in (x, seen, lacking, weights)), strict=True)
        return over(*first), over(*second)


def _correct_block(
    sequential: SequentialPass, pair: _Pair, rounding: str, progress: Progress
) -> None:
    """Round the matrices of a block again, those of one input together, and write them."""
    readers: dict[str, list[str]] = {}
    for module in sequential.bank.checkpoint.matrices:
        if sequential.corrects(module) and layer_of(module) == pair.layer:
            readers.setdefault(input_of(module), []).append(module)
    parts: Packed = {}
    facts: dict[str, str] = {}
    for owner, modules in readers.items():
        halves = pair.drifts(owner)
        drift = halves[0] + halves[1]
        factor = factorize(drift.second_moment.unsqueeze(0), [owner], progress)
        jobs = [
            RoundingJob(
                corrected(pair.weight(module), halves, factor),
                qtypes.get(sequential.allocation[module]),
                outputs=outputs_of(sequential.bank.statistics, module),
            )
            for module in modules
        ]
        for module, job, one in zip(
            modules, jobs, round_matrices(jobs, factor, rounding), strict=True
        ):
            choices = {
                "bank": sequential.bank.polished(module, job.qtype.name),
                "corrected": job.qtype.pack(one.fields),
            }
            facts[module] = _choose(job, choices, pair, module, drift)
            kept = choices[facts[module]]
            parts |= {f"{module}/{part}": tensor.cpu() for part, tensor in kept.items()}
    sequential.bank.work.save(sequential.artefact(pair.layer), parts, facts)


def _choose(
    job: RoundingJob, choices: Mapping[str, Packed], pair: _Pair, module: str, drift: Drift
) -> str:
    """Put the rounding that comes closest to the original's outputs into the quantized block.

    Returns:
        its key; the first of equals.
    """
    weight, qtype = pair.weight(module), job.qtype
    matrices = {key: qtype.dequantize(packed).to(weight.device) for key, packed in choices.items()}
    excess = {
        key: drift.excess(matrix - weight, weight, job.outputs) for key, matrix in matrices.items()
    }
    best = min(excess, key=lambda key: excess[key])
    pair.replace(module, matrices[best])
    return best
