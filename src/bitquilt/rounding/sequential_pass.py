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
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models.architectures import architecture_of
from bitquilt.models.blockwise import BlockwiseModel, batches
from bitquilt.models.names import in_block, layer_of
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.rounding.gptaq import Drift, corrected
from bitquilt.rounding.hessian import factorize
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.output_feedback import outputs_of
from bitquilt.rounding.round_matrices import RoundingJob, round_matrices
from bitquilt.runtime.progress import Progress

ADDED = ("self_attn.o_proj", "mlp.down_proj")
"""The matrices whose outputs are added to the residual stream."""


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
    original = BlockwiseModel(bank.checkpoint)
    quantized = BlockwiseModel(bank.checkpoint, sequential.weight)
    streams = original.embed(tokens), quantized.embed(tokens)
    for layer in range(bank.checkpoint.layers):
        before = original.block(layer)
        if not sequential.done(layer):
            blocks = (before, quantized.block(layer))
            pair = _Pair(layer, blocks, streams, plain, bank.statistics)
            _correct_block(sequential, pair, rounding, progress)
        original.run_all(before, streams[0])
        quantized.run_all(quantized.block(layer), streams[1])
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
        blocks: tuple[nn.Module, nn.Module],
        streams: tuple[Tensor, Tensor],
        plain_residual: bool,
        statistics: CalibrationStats,
    ) -> None:
        """Take a block.

        Args:
            layer: its number.
            blocks: one-block models, both with the original weights.
            streams: hidden states [N, L, D] before it, original and quantized.
            plain_residual: whether the outputs of :data:`ADDED` are added as they are.
            statistics: say what each token counts for.
        """
        self.layer = layer
        self._statistics = statistics
        self._plain_residual = plain_residual
        self._blocks = blocks
        self._streams = streams

    def weight(self, module: str) -> Tensor:
        """Return the original matrix [R, C]."""
        return _linear(self._blocks[0], module).weight

    def replace(self, module: str, matrix: Tensor) -> None:
        """Give the quantized block a rounded matrix [R, C]."""
        _linear(self._blocks[1], module).weight = nn.Parameter(matrix, requires_grad=False)

    def drifts(self, module: str) -> tuple[Drift, Drift]:
        """Return how what a matrix reads drifts, over either half of the windows."""
        there = self._streams[0]
        # [T] -> [N, L]
        weights = self._statistics.token_weights(module).to(there).unflatten(0, there.shape[:2])
        parts = (part.tensor_split(2) for part in (*self._streams, weights))
        first, second = zip(*parts, strict=True)
        return self._drift(module, first), self._drift(module, second)

    def _drift(self, module: str, parts: tuple[Tensor, ...]) -> Drift:
        """Return how it drifts over some windows of both streams, with the weights of tokens."""
        *streams, weights = parts
        kept = 1 - self._statistics.shrunk_by(module)
        reads = [(block, _linear(block, module)) for block in self._blocks]
        added = module.endswith(ADDED) and self._plain_residual

        def of(rows: slice) -> Drift:
            (x, h), (seen, there) = (
                _read(*read, stream[rows]) for read, stream in zip(reads, streams, strict=True)
            )
            lacking = h - there if added else h.new_zeros(len(h), 1)
            return Drift.of(x, seen, lacking, weights[rows].flatten(), kept)

        return reduce(add, map(of, batches(streams[0])))


def _linear(block: nn.Module, module: str) -> nn.Linear:
    """Look up a layer of a one-block model by its module path in the whole model."""
    linear = block.get_submodule(f"layers.0.{in_block(module)}")
    assert isinstance(linear, nn.Linear)
    return linear


class _Reached(Exception):  # noqa: N818
    """A forward pass has come to the layer that it was for."""


def _read(block: nn.Module, linear: nn.Linear, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a linear layer reads [T, C], and the residual stream [T, D] at that point.

    Args:
        block: the one-block model.
        linear: a layer of it.
        hidden: [n, L, D] before the block.
    """
    stream, read = [hidden], []

    def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
        read.append(inputs[0])
        raise _Reached

    # the stream between attention and MLP is what the norm before the MLP reads
    norm = block.get_submodule("layers.0.post_attention_layernorm")
    hooks = (
        norm.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0])),
        linear.register_forward_pre_hook(stop),
    )
    with suppress(_Reached):
        block(inputs_embeds=hidden, use_cache=False)
    for hook in hooks:
        hook.remove()
    return read[0].flatten(0, -2), stream[-1].flatten(0, -2)


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
