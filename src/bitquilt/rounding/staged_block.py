"""One block that text goes through in stages, so that its matrices can be replaced on the way.

Letters: N windows, L tokens in a window, D model width, C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from bitquilt.models.blockwise import BlockwiseModel, batch_tokens, batches
from bitquilt.models.names import in_block

ADDED = {"self_attn.o_proj": "self_attn", "mlp.down_proj": "mlp"}
"""The matrices whose outputs are added to the residual stream → the part whose last they are."""


class StagedBlock:
    """A block of a model, and the hidden states of all of the text before it.

    It is stopped before one input after another, in the order of the computation. What attention
    or MLP gives is computed once, from what its last matrix has read, when the next stage wants
    it: all stages together cost one pass, whatever matrices are replaced between them.
    """

    def __init__(self, model: BlockwiseModel, layer: int, hidden: Tensor) -> None:
        """Take block ``layer`` with the model's weights, and hidden states [N, L, D] before it."""
        self._model, self._hidden = model, hidden
        self._block = model.block(layer)
        self._read: tuple[str, Tensor] | None = None  # of a part, what its last matrix reads
        self._known: list[nn.Module] = []  # parts whose outputs stand in for them
        self._rows = slice(0)  # the windows that are on their way

    def linear(self, module: str) -> nn.Linear:
        """Look up a layer by its module path in the whole model."""
        linear = self._inside(in_block(module))
        assert isinstance(linear, nn.Linear)
        return linear

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """Return what a matrix reads [N, L, C], and the residual stream [N, L, D] at that point."""
        self._settle()
        found = [self._stopped(self.linear(module), rows) for rows in self._few_windows()]
        read, stream = (torch.cat(parts) for parts in zip(*found, strict=True))
        if in_block(module) in ADDED:
            self._read = in_block(module), read
        return read, stream

    def finish(self) -> Tensor:
        """Return the hidden states [N, L, D] after the block; it is used up then."""
        self._settle()
        run, hidden = self._model.run, self._hidden
        after = torch.cat([run(self._block, hidden[rows]) for rows in self._few_windows()])
        for part in self._known:
            del part.forward
        return after

    def _inside(self, path: str) -> nn.Module:
        return self._block.get_submodule(f"layers.0.{path}")

    def _few_windows(self) -> Iterator[slice]:
        """Yield a few windows after the other; those are on their way then."""
        for rows in batches(self._hidden, batch_tokens(self._hidden.shape[2])):
            self._rows = rows
            yield rows

    def _stopped(self, linear: nn.Linear, rows: slice) -> tuple[Tensor, Tensor]:
        """Run some windows up to a layer; return what it reads, and the stream there."""
        stream, read = [self._hidden[rows]], []

        def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
            read.append(inputs[0])
            raise _Reached

        # the stream between attention and MLP is what the norm before the MLP reads
        norm = self._inside("post_attention_layernorm")
        hooks = (
            norm.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0])),
            linear.register_forward_pre_hook(stop),
        )
        with suppress(_Reached):
            self._model.run(self._block, stream[0])
        for hook in hooks:
            hook.remove()
        return read[0], stream[-1]

    def _settle(self) -> None:
        """Let the outputs of a part stand in for it, if its last matrix has been read."""
        if self._read is None:
            return
        (module, read), self._read = self._read, None
        part, linear = self._inside(ADDED[module]), self._inside(module)
        outputs = torch.cat([linear(read[rows]) for rows in self._few_windows()])
        attends = ADDED[module] == "self_attn"

        def known(*_: object, **__: object) -> Tensor | tuple[Tensor, None]:
            own = outputs[self._rows]
            return (own, None) if attends else own

        part.forward = known
        self._known.append(part)


class _Reached(Exception):  # noqa: N818
    """A forward pass has come to the layer that it was for."""
