"""Attributions: what each matrix adds to the KL of a whole allocation, from one pass back.

To second order KL is a quadratic form of all errors together, so that KL = ½ Σ_m ⟨∂KL/∂W_m, ΔW_m⟩
(Euler). The term of a matrix, its attribution, holds half of what it has in common with every
other. The pass goes block by block over all text, so that each matrix is decoded twice, however
many batches of text there are.

Letters: N windows, L tokens in a window, B batches of text, T tokens of a batch, D model width,
V vocabulary, M matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitquilt import qtypes
from bitquilt.allocation.space import Float64Array
from bitquilt.calibration.collect import linears
from bitquilt.errors import UserError
from bitquilt.metrics.kl_loss import reproducible_gradients
from bitquilt.metrics.teacher import OTHER_TYPES, Teacher
from bitquilt.models.blockwise import BlockwiseModel, embedding_scale, logit_tokens
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.qtypes.qtype import Allocation, PackedSource
from bitquilt.runtime.progress import Progress

ATTRIBUTION_BATCH = 2
"""Windows whose attributions are one sample."""
STATES = {"cpu": 1 << 27, "cuda": 4 << 30}
"""Bytes of what blocks read that are kept at once, by device."""


def kl_attribution(
    checkpoint: Checkpoint,
    allocation: Allocation,
    packed: PackedSource,
    teacher: Teacher,
    progress: Progress,
) -> Float64Array:
    """Return what each matrix adds to the KL of an allocation, in nats per token.

    Args:
        checkpoint: the original.
        allocation: the type of every matrix.
        packed: the rounded matrices.
        teacher: the original on some text.
        progress: advances by one for each batch.

    Returns:
        [B, M], matrices in the order of the allocation.

    Raises:
        UserError: one is NaN or infinite.
    """
    rounded = _RoundedModel(checkpoint, allocation, packed)
    windows, length = teacher.tokens.shape
    states = checkpoint.layers * length * teacher.hidden.shape[2] * 4
    batches = max(1, STATES[rounded.model.device.type] // (states * ATTRIBUTION_BATCH))
    found = []
    for part in _few(windows, batches * ATTRIBUTION_BATCH):
        own = teacher.windows(part)
        with reproducible_gradients(rounded.model.device):
            slopes = _Slopes(rounded, own, progress).all()
        found.append([[0.5 * float(batch) for batch in slopes[m]] for m in allocation])
    attributions = np.concatenate(found, 1).T
    if not np.isfinite(attributions).all():
        of_matrix = zip(allocation, attributions.T, strict=True)
        broken = next(m for m, own in of_matrix if not all(map(isfinite, own)))
        raise UserError(
            f"{checkpoint.name} computes NaN or infinity once its matrices are quantized, for "
            f"example {broken} to {allocation[broken]}; {OTHER_TYPES}"
        )
    return attributions


class _RoundedModel:
    """The model with an allocation's weights, and their errors."""

    def __init__(
        self, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
    ) -> None:
        self.checkpoint, self.allocation, self._packed = checkpoint, allocation, packed
        self.model = BlockwiseModel(checkpoint, self._weight)

    def _weight(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if module not in self.allocation:
            return self.checkpoint.load(name, self.model.device)
        qtype, device = self.allocation[module], self.model.device
        parts = {part: tensor.to(device) for part, tensor in self._packed(module, qtype).items()}
        return qtypes.get(qtype).dequantize(parts)

    def error(self, module: str, rounded: Tensor) -> Tensor:
        """Return ΔW [R, C] of a matrix, given what it was rounded to."""
        return rounded - self.checkpoint.load(f"{module}.weight", rounded.device)


class _Slopes:
    """One pass over some windows: ⟨∂KL/∂W, ΔW⟩ of every matrix, for each batch."""

    def __init__(self, rounded: _RoundedModel, teacher: Teacher, progress: Progress) -> None:
        self._rounded, self._model = rounded, rounded.model
        self._teacher, self._progress = teacher, progress
        self._batches = list(_few(len(teacher.tokens), ATTRIBUTION_BATCH))
        self._slopes: dict[str, list[Tensor]] = {}

    def all(self) -> dict[str, list[Tensor]]:
        """Return the slopes of each matrix, batch by batch."""
        model, layers = self._model, self._rounded.checkpoint.layers
        kept: list[Tensor] = []
        with torch.no_grad():
            hidden = model.embed(self._teacher.tokens)
            for index in range(layers):
                kept.append(hidden.clone())
                model.run_all(model.block(index), hidden)
        gradient = self._through_head(hidden)
        for index in reversed(range(layers)):
            gradient = self._through_block(index, kept.pop(), gradient)
            self._progress.advance(len(self._batches) / layers)
        self._at_embedding(gradient)
        return self._slopes

    def _add(self, module: str, batch: int, slope: Tensor) -> None:
        """Add to the slope of a matrix, which may be used in two places."""
        own = self._slopes.setdefault(module, [torch.zeros_like(slope) for _ in self._batches])
        own[batch] = own[batch] + slope

    @torch.no_grad()
    def _through_head(self, hidden: Tensor) -> Tensor:
        """Take the slopes of the head; return the gradient [N, L, D] after the last block."""
        rounded, teacher = self._rounded, self._teacher
        module = EMBEDDING if rounded.checkpoint.tied else HEAD
        head = self._model.head()
        error = rounded.error(module, head) if module in rounded.allocation else None
        gradient = torch.empty_like(hidden)
        for batch, windows in enumerate(self._batches):
            x = hidden[windows].flatten(0, 1).requires_grad_()  # [n, L, D] -> [T, D]
            with torch.enable_grad():
                y = self._model.final_norm(x)
            theirs, at_y = teacher.hidden[windows].flatten(0, 1), torch.empty_like(x)
            for tokens in _few(len(x), logit_tokens(len(head))):
                own = y[tokens].detach()
                # ∂KL/∂logits = q − p, of the mean over the tokens of the batch
                slope = (own @ head.T).softmax(-1)
                slope -= (theirs[tokens].to(own) @ teacher.head.to(own).T).softmax(-1)
                slope /= len(x)
                at_y[tokens] = slope @ head
                if error is not None:
                    self._add(module, batch, (slope * (own @ error.T)).sum())
            y.backward(at_y)
            assert x.grad is not None
            gradient[windows] = x.grad.view_as(hidden[windows])
        return gradient

    def _through_block(self, index: int, inputs: Tensor, gradient: Tensor) -> Tensor:
        """Take the slopes of a block; return the gradient [N, L, D] at its inputs."""
        block = self._model.block(index)
        weights = {
            module: linear.weight
            for module, linear in linears(block, index)
            if module in self._rounded.allocation
        }
        errors = {m: self._rounded.error(m, weight.detach()) for m, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_()
        before = torch.empty_like(gradient)
        for batch, windows in enumerate(self._batches):
            x = inputs[windows].clone().requires_grad_()
            y = self._model.run(block, x)
            before[windows], *own = torch.autograd.grad(
                y, [x, *weights.values()], gradient[windows]
            )
            for module, slope in zip(weights, own, strict=True):
                self._add(module, batch, (slope * errors[module]).sum())
        return before

    @torch.no_grad()
    def _at_embedding(self, gradient: Tensor) -> None:
        """Take the slopes of the table, given the gradient [N, L, D] before the first block."""
        rounded = self._rounded
        if EMBEDDING not in rounded.allocation:
            return
        table = self._model.weights(f"{EMBEDDING}.weight").to(gradient)
        error = rounded.error(EMBEDDING, table)
        scale = embedding_scale(rounded.checkpoint.config)
        for batch, windows in enumerate(self._batches):
            moved = F.embedding(self._teacher.tokens[windows].to(error.device), error)
            self._add(EMBEDDING, batch, scale * (gradient[windows] * moved).sum())


def _few(count: int, step: int) -> Iterator[slice]:
    """Yield slices of so many at a time."""
    for start in range(0, count, step):
        yield slice(start, start + step)
