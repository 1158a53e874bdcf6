"""What a file will weigh, known before any work: exactly additive over the matrices.

``total_bytes == fixed_bytes + sum(tensor_bytes.values())``, and ``fixed_bytes`` does not depend on
the allocation: whatever varies in length with it (the recipe, per-module entries) is written into
a room as large as any allocation needs and filled up with spaces. A knapsack over
``tensor_bytes`` is therefore exact in bytes on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.ggml import GgmlQuantType
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.qtypes.mxfp4 import MlxMxFp4
from bitquilt.qtypes.mxfp8 import MlxMxFp8
from bitquilt.qtypes.nvfp4 import MlxNvFp4
from bitquilt.qtypes.qtype import Allocation, QuantType

RECIPE_BASE_ROOM = 4096
RECIPE_ENTRY_ROOM = 40

_DATA_PARTS = ("norms", "embedding", "codes", "scales")
"""The parts of a file that are the data of tensors."""
_SCALE_SECTIONS = frozenset({"d", "e", "dmin", "m", "scales", "scales_h", "scales_l"})


@dataclass(frozen=True)
class Layout:
    """The exact size of a model file (GGUF) or of a whole model directory (MLX), in bytes."""

    total_bytes: int
    tensor_bytes: dict[str, int]
    """Module path → its bytes in the file, alignment padding included."""
    fixed_bytes: int
    """Everything else; the same for every allocation."""
    breakdown: dict[str, int]
    """Kind → its bytes, for people; they add up to the total. The kinds are metadata, tokenizer,
    norms, embedding, codes, scales, padding, and vision where there is a tower."""
    weights: int
    """All weights of the model's tensors."""

    @property
    def norm_bytes(self) -> int:
        """The data of the tensors that are not matrices."""
        return self.breakdown["norms"]

    @property
    def bits(self) -> float:
        """Bits per weight of the tensors."""
        return bits_per_weight(sum(self.breakdown[part] for part in _DATA_PARTS), self.weights)

    @property
    def bits_on_disk(self) -> float:
        """Bits per weight of everything on disk."""
        return bits_per_weight(self.total_bytes, self.weights)

    def filled(self, total_bytes: int) -> Layout:
        """Return this layout with padding up to ``total_bytes``, as ``Target.write`` adds it."""
        padding = self.breakdown["padding"] + total_bytes - self.total_bytes
        breakdown = {**self.breakdown, "padding": padding}
        return replace(self, total_bytes=total_bytes, breakdown=breakdown)


def bits_per_weight(nbytes: int, weights: int) -> float:
    """Return the bits per weight of that many bytes.

    Of the data of all tensors it is what ``llama-quantize`` calls BPW and what mlx-lm's
    ``compute_bits_per_weight`` returns.

    Args:
        nbytes: the data of all tensors, scales included; or everything on disk.
        weights: the weights of all tensors, norms included.
    """
    return nbytes * 8 / weights


def qtypes_of(checkpoint: Checkpoint, allocation: Allocation, target: str) -> dict[str, QuantType]:
    """Look up the type of every matrix, in file order.

    Raises:
        UserError: a matrix has no type, a module is not a matrix of this model, or ``target``
            (gguf, mlx) cannot hold the type.
    """
    matrices = checkpoint.matrices
    if missing := [module for module in matrices if module not in allocation]:
        raise UserError(
            f"the recipe gives {missing[0]} no type ({len(missing)} such matrices); "
            "add a default to the recipe"
        )
    if unknown := [module for module in allocation if module not in matrices]:
        raise UserError(
            f"the recipe names {unknown[0]}, which is not a matrix of {checkpoint.name}"
        )
    chosen = {module: qtypes.get(allocation[module]) for module in matrices}
    for module, qtype in chosen.items():
        if target not in qtype.targets:
            raise UserError(
                f"{module}: {target} files cannot hold {qtype.name}; choose one made for {target}"
            )
    return chosen


def recipe_room(checkpoint: Checkpoint) -> int:
    """Return the bytes kept for a recipe in JSON: enough for one line per matrix, indented."""
    return RECIPE_BASE_ROOM + sum(len(m) + RECIPE_ENTRY_ROOM for m in checkpoint.matrices)


def padded_text(text: str, room: int, what: str) -> str:
    """Return ``text`` with trailing spaces up to ``room`` bytes of UTF-8.

    Raises:
        UserError: it is longer than the room.
    """
    length = len(text.encode())
    if length > room:
        raise UserError(
            f"{what} takes {length:,} bytes, but only {room:,} are reserved for it; shorten it"
        )
    return text + " " * (room - length)


def scale_bytes(qtype: QuantType, rows: int, columns: int) -> int:
    """Count the bytes of a matrix that are scales, mins and biases rather than codes."""
    return rows * (columns // qtype.block) * _scale_bits(qtype) // 8


def _scale_bits(qtype: QuantType) -> int:
    """Return the bits of one block that are not codes."""
    if isinstance(qtype, GgmlQuantType):
        return 8 * sum(n for part, n in qtype.sections.items() if part in _SCALE_SECTIONS)
    if isinstance(qtype, Affine):
        return qtype.block_bits - qtype.width * qtype.block
    return 8 if isinstance(qtype, MlxMxFp4 | MlxMxFp8 | MlxNvFp4) else 0
