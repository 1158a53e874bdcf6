"""The student: a mix whose scales and norms can be learned; its codes stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.models.architectures import architecture_of
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.kquants import Signed, WithMins
from bitquilt.qtypes.qtype import PackedSource, QuantType, Unpacked
from bitquilt.rounding.tuning.learned import Learned, Norm, Scales, StoredRange
from bitquilt.targets import get_target, target_of


def scales_of(qtype: QuantType, fields: Unpacked) -> Iterator[tuple[Unpacked, StoredRange]]:
    """Yield the scales that are learned: those in floating point, and integers of K-quants.

    The numbers of BF16 and F32 are codes.
    """
    if floats := {n: f for n, f in fields.items() if f.is_floating_point() and n != "codes"}:
        (target,) = qtype.targets
        yield floats, StoredRange(getattr(torch, get_target(target).scale_dtype))
    if isinstance(qtype, WithMins):
        unsigned = StoredRange(torch.uint8, 0, qtype.highest_scale)
        yield {name: fields[name] for name in ("scales", "mins")}, unsigned
    if isinstance(qtype, Signed):
        signed = StoredRange(torch.int8, qtype.lowest_scale, qtype.highest_scale)
        yield {"scales": fields["scales"]}, signed


class Student:
    """The model that a file would hold, differentiable in what is learned."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        allocation: Mapping[str, str],
        packed: PackedSource,
        device: torch.device,
    ) -> None:
        """Start from a mix as it was rounded.

        Args:
            checkpoint: gives norms and biases.
            allocation: module path → type name, for every matrix.
            packed: the rounded matrices.
            device: where to compute.
        """
        self._qtypes = {module: qtypes.get(name) for module, name in allocation.items()}
        self._fixed: dict[str, Unpacked] = {}
        self._learned: dict[str, list[Learned]] = {}  # by module path, or by name of a norm
        for module, qtype in self._qtypes.items():
            fields = {n: f.to(device) for n, f in qtype.unpack(packed(module, qtype.name)).items()}
            self._add(module, qtype, fields)
        self._biases: dict[str, Tensor] = {}
        stored = StoredRange(self._norm_dtype())
        offset = architecture_of(checkpoint.config).norm_offset
        for name, shape in checkpoint.shapes.items():
            if len(shape) == 1 and name.endswith("norm.weight"):
                weight = checkpoint.load(name, device)
                self._learned[name] = [Norm(weight, offset, stored)]
            elif len(shape) == 1:
                self._biases[name] = checkpoint.load(name, device)

    def _add(self, module: str, qtype: QuantType, fields: Unpacked) -> None:
        """Add a matrix: what of it stays, and its scales."""

        def decode(own: Unpacked) -> Tensor:
            return qtype.decode(fields | own)

        scales = list(scales_of(qtype, fields))
        self._learned[module] = [Scales(own, decode, stored) for own, stored in scales]
        moves = {name for own, _ in scales for name in own}
        self._fixed[module] = {name: fields[name] for name in fields.keys() - moves}

    def _norm_dtype(self) -> torch.dtype:
        """Return the dtype in which the file will store norms."""
        dtype: torch.dtype = getattr(torch, target_of(self._qtypes.values()).norm_dtype)
        return dtype

    def weight(self, name: str) -> Tensor:
        """Return a tensor by canonical name, float32; gradients reach what is learned of it."""
        if name in self._biases:
            return self._biases[name]
        module = name.removesuffix(".weight")
        if module not in self._qtypes:
            return self._values(name)["weight"]
        return self._qtypes[module].decode(self._fixed[module] | self._values(module))

    def _values(self, owner: str) -> Unpacked:
        """Return what is learned of a matrix or a norm, as the file would hold it now."""
        return {n: numbers for one in self._learned[owner] for n, numbers in one.values().items()}

    def changes(self) -> list[Tensor]:
        """Return what the optimizer moves."""
        every = [one for own in self._learned.values() for one in own]
        return [change for one in every for change in one.changes.values()]

    def numbers(self) -> dict[str, Tensor]:
        """Return all that is learned as a file would hold it now, in its dtypes, on the CPU.

        Scales are under ``<module>/<field>``, norms under ``<name>/weight``.
        """
        return {
            f"{owner}/{field}": numbers.detach().to("cpu", one.stored.dtype)
            for owner, own in self._learned.items()
            for one in own
            for field, numbers in one.values().items()
        }
