"""An importance matrix as llama-imatrix collects it: plain sums of squares of what matrices read.

Unlike the Hessians of :mod:`.collect`, every token counts alike and nothing is shrunk, so that the
numbers mean what llama.cpp's do, and its tools take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bitquilt.calibration.collect import linears
from bitquilt.gguf.imatrix import ImportanceEntry, ImportanceMatrix
from bitquilt.models.architectures import architecture_of
from bitquilt.models.blockwise import BlockwiseModel, batches
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.runtime.progress import Progress


@torch.no_grad()
def collect_importance(
    model: BlockwiseModel, tokens: Tensor, datasets: Sequence[str], progress: Progress
) -> ImportanceMatrix:
    """Run tokens int64 [N, L] through a model, and sum the squares of every matrix's inputs.

    Entries go by the names of the tensors in a GGUF file. Beside those of llama-imatrix there is
    one of the output matrix, as its ``--process-output`` adds it; where that is the embedding, it
    goes by the embedding's name.

    Args:
        model: the full-precision model.
        tokens: the text.
        datasets: the names of the texts.
        progress: advances by one for each block.
    """
    checkpoint, sums = model.checkpoint, dict[str, Tensor]()
    hidden = model.embed(tokens)
    for index in range(checkpoint.layers):
        block = model.block(index)
        hooks = [
            linear.register_forward_pre_hook(_adding_to(sums, name))
            for name, linear in linears(block, index)
        ]
        model.run_all(block, hidden)
        for hook in hooks:
            hook.remove()
        progress.advance()
    head = EMBEDDING if checkpoint.tied else HEAD
    sums[head] = sum(
        (_squares(model.final_norm(hidden[rows])) for rows in batches(hidden)), torch.zeros(())
    )
    count = np.array([tokens.numel()], np.float32)
    return ImportanceMatrix(
        entries={
            _gguf_name(checkpoint, name): ImportanceEntry(
                total.float().cpu().numpy().reshape(1, -1), count
            )
            for name, total in sums.items()
        },
        datasets=tuple(datasets),
        chunks=len(tokens),
        chunk_size=tokens.shape[1],
    )


def _gguf_name(checkpoint: Checkpoint, module: str) -> str:
    return architecture_of(checkpoint.config).gguf_name(f"{module}.weight")


def _squares(x: Tensor) -> Tensor:
    """Sum the squares of [.., C] over all tokens, float64 [C] on the CPU."""
    return x.flatten(0, -2).square().sum(0).double().cpu()


def _adding_to(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """Return a hook before a linear layer's forward pass."""

    def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
        sums[name] = sums.get(name, 0) + _squares(inputs[0])

    return add
