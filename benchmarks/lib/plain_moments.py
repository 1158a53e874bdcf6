"""What peers have of the calibration text: every token counts alike, and nothing is shrunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.collect import linears, second_moment
from bitquilt.models.blockwise import BlockwiseModel, batches
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint

PlainMoments = dict[str, Tensor]
"""Module → mean of x xᵀ at its input [C, C]; a shared input's under the name of its owner."""


@torch.no_grad()
def plain_moments(checkpoint: Checkpoint, tokens: Tensor) -> PlainMoments:
    """Collect what llama-imatrix and GPTQ read of tokens [N, L]."""
    model, moments = BlockwiseModel(checkpoint), {}
    hidden = model.embed(tokens)
    parts = list(batches(hidden))

    def adder(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            moments[name] = moments.get(name, 0) + second_moment(inputs[0]) / len(parts)

        return add

    for index in range(checkpoint.layers):
        block = model.block(index)
        hooks = [
            linear.register_forward_pre_hook(adder(name))
            for name, linear in linears(block, index)
            if input_of(name) == name
        ]
        model.run_all(block, hidden)
        for hook in hooks:
            hook.remove()
    moments[HEAD] = moments[EMBEDDING] = second_moment(model.final_norm(hidden))
    return {name: moment.cpu() for name, moment in moments.items()}
