"""KL of many allocations of one bank against the original, sharing what they have in common.

Allocations that agree up to some block have the same hidden states there, so they are one until
they part. Where they differ, several go through a block at once, their matrices stacked. Weights
are decoded from packed codes one block at a time; the original is its last hidden states, and
logits exist for a few tokens only. The result depends on bank, allocation and text alone, so any
machine that has these can compute it.

Letters: K allocations, S distinct states, N windows, n of them at once, L tokens in a window,
T tokens, D model width, V vocabulary, R rows and C columns of a matrix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.metrics.kl import relative
from bitquilt.metrics.teacher import OTHER_TYPES, Teacher
from bitquilt.models.blockwise import BlockwiseModel, embedding_scale, logit_tokens
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.qtype import Allocation, PackedSource
from bitquilt.runtime.malloc import LARGEST_KEPT, trim
from bitquilt.runtime.products import fast_precision, multiplying

STATE_BYTES = 1 << 30
"""Bytes of hidden states, of all allocations, that are in memory at once."""
DECODED_BYTES = 2 << 30
"""Bytes of decoded matrices that are kept for the next time; on a GPU a quarter of its memory."""
ROUGH = 0.05
"""The relative error of KL from which on fast products are given up; some builds of PyTorch compute
something else altogether in bfloat16."""
AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 16}
"""Tokens that go through a block at once; with fewer, a GPU spends its time waiting."""


class Evaluator:
    """KL of allocations, token by token."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        packed: PackedSource,
        *,
        decoded_bytes: int | None = None,
        tokens_at_once: int | None = None,
    ) -> None:
        """Prepare to evaluate.

        Args:
            checkpoint: the model.
            packed: its matrices on the types that allocations will name.
            decoded_bytes: bytes of decoded matrices that are kept; by the device if not given.
            tokens_at_once: tokens that go through a block at once; by the device if not given.
        """
        self._model = _Stacked(checkpoint, _Decoded(packed, decoded_bytes))
        self._at_once = tokens_at_once or AT_ONCE[self._model.device.type]
        self.precision = fast_precision(self._model.device)
        """How matrices are multiplied: one of :data:`bitquilt.runtime.products.PRODUCTS`."""
        self._blocks = [
            [module for module in checkpoint.matrices if layer_of(module) == index]
            for index in range(checkpoint.layers)
        ]
        self._head = EMBEDDING if checkpoint.tied else HEAD

    @torch.inference_mode()
    def __call__(
        self, teacher: Teacher, allocations: Sequence[Allocation], windows: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return KL(original ‖ quantized) in nats.

        Args:
            teacher: the original on some text.
            allocations: each a type for every matrix.
            windows: which windows of that text.

        Returns:
            KL [K, N, L − 1], one figure per predicted token.

        Raises:
            UserError: a KL is NaN or infinite.
        """
        length, width = teacher.hidden.shape[1:]
        room = STATE_BYTES // (len(allocations) * length * width * 4)
        most = min(room, self._at_once // length)
        with multiplying(self.precision):
            parts = [
                self._on_windows(teacher, allocations, some)
                for some in _batched(windows, max(1, most))
            ]
        found = np.concatenate(parts, axis=1)
        self._require_finite(found, allocations)
        return found

    def _require_finite(self, kl: NDArray[np.float32], allocations: Sequence[Allocation]) -> None:
        """Refuse NaN and infinity in KL [K, N, L − 1]: no comparison catches them.

        Raises:
            UserError: the sentence names the model and the types.
        """
        for own, allocation in zip(kl, allocations, strict=True):
            if not np.isfinite(own).all():
                types = " and ".join(sorted(set(allocation.values())))
                raise UserError(
                    f"{self._model.checkpoint.name} computes NaN or infinity with its matrices in "
                    f"{types}, usually because their scales overflow float16; {OTHER_TYPES}"
                )

    def multiply_exactly(self) -> None:
        """Multiply in float32 from now on."""
        self.precision = "highest"

    def noise(self, teacher: Teacher, allocation: Allocation, windows: Sequence[int]) -> float:
        """Return the relative error of an allocation's KL that fast products cause."""
        fast = float(self(teacher, [allocation], windows).mean())
        precision, self.precision = self.precision, "highest"
        try:
            exact = float(self(teacher, [allocation], windows).mean())
        finally:
            self.precision = precision
        return fast / exact - 1 if exact else 0.0

    def _on_windows(
        self, teacher: Teacher, allocations: Sequence[Allocation], windows: Sequence[int]
    ) -> NDArray[np.float32]:
        """Compute the KL on as many windows as there is room for."""
        tokens, original = teacher.tokens[list(windows)], teacher.hidden[list(windows)]
        branches = _Branches(allocations, [EMBEDDING])
        states = self._embed(branches, tokens)
        for index, modules in enumerate(self._blocks):
            branches = branches.split(modules)
            states = self._through(index, branches, states)
        states = self._model.final_norm(states)
        if not states.is_cuda and teacher.head.nbytes > LARGEST_KEPT:
            trim()  # beside such tables, the blocks of hidden states are too much to keep
        branches = branches.split([self._head])
        found = torch.empty(len(branches.parents), *original[:, 1:, 0].shape)
        for qtype in dict.fromkeys(allocation[self._head] for allocation in branches.allocations):
            head = self._model.decoded(self._head, qtype)
            own = [
                i
                for i, allocation in enumerate(branches.allocations)
                if allocation[self._head] == qtype
            ]
            students = [states[branches.parents[i], :, :-1].flatten(0, 1) for i in own]
            kl = _kl(original[:, :-1].flatten(0, 1), teacher.head, students, head)
            found[own] = kl.cpu().unflatten(1, found.shape[1:])
        return found[branches.branch_of].numpy()

    def _embed(self, branches: _Branches, tokens: Tensor) -> Tensor:
        """Hidden states [S, n, L, D] before the first block."""
        tables = (
            self._model.decoded(EMBEDDING, allocation[EMBEDDING])
            for allocation in branches.allocations
        )
        embedded = [F.embedding(tokens.to(table.device), table) for table in tables]
        return torch.stack(embedded) * embedding_scale(self._model.checkpoint.config)

    def _through(self, index: int, branches: _Branches, states: Tensor) -> Tensor:
        """Hidden states [S, n, L, D] before a block → those after it, for more distinct ones."""
        n, length, width = states.shape[1:]
        after = states.new_empty(len(branches.parents), n, length, width)
        some = max(1, self._at_once // (n * length))
        for chunk in _batched(range(len(branches.parents)), some):
            before = states[[branches.parents[i] for i in chunk]].flatten(0, 1)  # [k·n, L, D]
            self._model.allocations = [branches.allocations[i] for i in chunk]
            after[list(chunk)] = self._model.through(index, before).unflatten(0, (-1, n))
        return after


class _Branches:
    """Distinct hidden states at one point of the model; allocations that agree so far share one."""

    def __init__(self, allocations: Sequence[Allocation], modules: Sequence[str]) -> None:
        """Begin with the first matrices: allocations that agree on them share a branch."""
        self._all = allocations
        self._part([(0, *(allocation[m] for m in modules)) for allocation in allocations])

    def _part(self, keys: Sequence[tuple[Any, ...]]) -> None:
        places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self.branch_of = [places[key] for key in keys]
        """Index of an allocation → its branch."""
        self.parents = [key[0] for key in places]
        """Branch → the branch before that it continues."""
        self.allocations = [self._all[self.branch_of.index(i)] for i in places.values()]
        """Branch → an allocation that has it."""

    def split(self, modules: Sequence[str]) -> _Branches:
        """Return the branches after these matrices too."""
        following = _Branches(self._all, [])
        choices = [tuple(allocation[m] for m in modules) for allocation in self._all]
        following._part([(at, *own) for at, own in zip(self.branch_of, choices, strict=True)])
        return following


class _Decoded:
    """Matrices decoded from their codes; the latest stay, as far as there is room."""

    def __init__(self, packed: PackedSource, room: int | None) -> None:
        self._packed, self._room = packed, room
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._bytes = 0

    def __call__(self, module: str, qtype: str, device: torch.device) -> Tensor:
        """Decode a matrix [R, C] on a type, or return the one that was kept."""
        key = (module, qtype)
        if key not in self._kept:
            parts = {name: part.to(device) for name, part in self._packed(module, qtype).items()}
            self._kept[key] = qtypes.get(qtype).dequantize(parts)
            self._bytes += self._kept[key].nbytes
            room = self._room or _room(device)
            while self._bytes > room and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


@cache
def _room(device: torch.device) -> int:
    """Return the bytes of decoded matrices that may be kept."""
    if device.type != "cuda":
        return DECODED_BYTES
    return torch.cuda.get_device_properties(device).total_memory // 4


class _Stacked(BlockwiseModel):
    """Several allocations at once: the windows of one follow those of another."""

    def __init__(self, checkpoint: Checkpoint, decoded: _Decoded) -> None:
        super().__init__(checkpoint, self._stack)
        self._matrices = frozenset(checkpoint.matrices)
        self.allocations: Sequence[Allocation] = ()
        """The allocations whose windows the next call of :meth:`through` brings."""
        self._decoded = decoded
        self._plain: Callable[[str], Tensor] = cache(checkpoint.load)

    def decoded(self, module: str, qtype: str) -> Tensor:
        """Decode a matrix [R, C] on a type."""
        return self._decoded(module, qtype, self.device)

    def _stack(self, name: str) -> Tensor:
        """Return the tensor of a name: a matrix [R, C] that all share, or each one's [k, R, C]."""
        module = name.removesuffix(".weight")
        if module not in self._matrices:
            return self._plain(name)
        chosen = [allocation[module] for allocation in self.allocations]
        if len(set(chosen)) == 1:
            return self.decoded(module, chosen[0])
        return torch.stack([self.decoded(module, qtype) for qtype in chosen])

    def _empty(self, layer_type: str) -> Any:
        shell = super()._empty(layer_type)
        for name, linear in list(shell.named_modules()):
            if isinstance(linear, nn.Linear):
                shell.set_submodule(name, _StackedLinear(linear.bias is not None))
        return shell


class _StackedLinear(nn.Module):
    """A linear layer with one matrix for all windows, or with one for each of k equal parts."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(0), requires_grad=False) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [k·n, L, C] to [k·n, L, R]."""
        if self.weight.dim() == 2:
            return F.linear(x, self.weight, self.bias)
        parts = x.reshape(len(self.weight), -1, x.shape[-1])  # [k, n·L, C]
        y = torch.bmm(parts, self.weight.mT).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def _kl(teacher: Tensor, teacher_head: Tensor, students: Sequence[Tensor], head: Tensor) -> Tensor:
    """Compute KL(teacher ‖ student) in nats, [S, T] for students that share an output matrix.

    Args:
        teacher: last hidden states [T, D].
        teacher_head: [V, D].
        students: last hidden states [T, D] of each.
        head: [V, D].
    """
    found = teacher.new_empty(len(students), len(teacher))
    at_once = logit_tokens(len(head))
    for start in range(0, len(teacher), at_once):
        rows = slice(start, start + at_once)
        logits = teacher[rows] @ teacher_head.T
        p, log_p = logits.softmax(-1), logits.log_softmax(-1)
        for own, student in zip(found, students, strict=True):
            own[rows] = relative(p, log_p, (student[rows] @ head.T).sub_(logits))[1]
    return found


def _batched(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield the items, ``size`` at a time."""
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some
