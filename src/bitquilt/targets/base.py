"""What an output format is: everything that differs between GGUF and MLX.

An instance is cheap to import, so that the command line can list the formats. What computes is
imported by the methods that need it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitquilt.runtime.files import atomic_write

if TYPE_CHECKING:
    from collections import Counter

    from torch import Tensor

    from bitquilt.engines.remote import RemoteEngine
    from bitquilt.models.checkpoint import Checkpoint
    from bitquilt.qtypes.qtype import Allocation, Packed, PackedSource
    from bitquilt.targets.layout import Layout

Tokenize = Callable[[str, bool], Sequence[int]]
"""(text, whether tokens that begin or end a text are added) → tokens."""


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A matrix of a model file, as the file has it."""

    name: str
    """What the file calls it, without ``.weight``."""
    module: str
    """Its Hugging Face module path; its name where the architecture is unknown."""
    qtype: str
    """Its type, which may be one that bitquilt does not write."""
    rows: int
    columns: int
    nbytes: int


class Target(ABC):
    """One output format: its files, the types that they hold, and the engine that runs them."""

    name: str
    """What ``--to``, recipes and JSON call it: ``gguf``, ``mlx``."""
    suffix: str
    """What the names of its files or directories end with."""
    engine: str
    """The engine that runs its files, for people."""
    presets: str
    """The program whose presets it has, as a key of :data:`bitquilt.allocation.presets.PRESETS`."""
    packages: tuple[str, ...]
    """The Python packages whose versions decide what the engine computes, and how fast."""
    engine_seconds: float
    """About how many seconds the engine takes to start and to read a few hundred tokens."""
    check_excerpt: tuple[int, int]
    """Windows, and tokens of each, that the engine reads after a file was written."""
    noise_excerpt: tuple[int, int]
    """Windows, and tokens of each, on which an evaluation compares the engine with torch."""
    engine_adds: float
    """The KL, in nats per token, that the engine's own arithmetic usually adds at most."""
    engine_rounds: str
    """What the engine rounds that torch does not, to follow its name: ``rounds activations``."""
    image_engine: str
    """The program that shows a file images."""
    images_are_read: str
    """What programs read images with the file of a vision tower: a sentence."""
    engine_is_fast: bool
    """Whether the engine is fast enough on this machine to read a whole evaluation."""
    scale_dtype: str
    """The torch dtype of the floating-point scales of types that only this format holds."""
    norm_dtype: str
    """The torch dtype of norms and biases beside quantized matrices."""
    own_repository: bool
    """Whether a model in this format fills a repository of the hub alone."""
    ollama_runs: bool
    """Whether Ollama runs its files."""
    alignment: int
    """The bytes of a tensor in the file are padded to a multiple of this."""
    fewest_bits: float
    """The bits per weight of its smallest type; no file has fewer."""
    bits_reach: tuple[float, float]
    """How many bits below and above the budget's a search tries for a matrix, to begin with."""
    superseded: ClassVar[Mapping[int, frozenset[str]]]
    """Divisor of row lengths → types that a search leaves out for such rows, since others
    serve as well (docs/decisions/candidates.md has the figures). Recipes may name them still."""
    gives_cells: ClassVar[bool] = False
    """Whether :meth:`packed` reads matrices out of files that others wrote."""
    same_levels: ClassVar[Mapping[str, str]]
    """What a matrix of a quantized source is stored as → the type of this format on whose levels it
    lies already, so that a search tries that type even where it is superseded."""

    def __str__(self) -> str:
        return self.name

    def about_types(self, names: Collection[str]) -> list[str]:
        """Say where engines are slow on types that a file will have: a sentence each."""
        return []

    def vision_file(self, name: str) -> str | None:
        """Name the file that a model's vision tower goes into, by the model's name, or None."""
        return None

    def keeps_vision(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a model's vision tower is a part of its files, and counts against a size."""
        return False

    def blind_note(self, name: str) -> str:
        """Say that the files of a model that sees have the language model alone."""
        return f"the {self} output has the language model only, without {name}'s vision tower"

    def vision_beside(self, path: Path) -> Path | None:
        """Find the file of the vision tower that goes with a model file; None if none does."""
        return None

    def vision_tensors(self, vision: Path) -> tuple[int | None, Counter[str]]:
        """Read the header of the file of a vision tower.

        Returns:
            the width of the embeddings that it gives, None where it does not say, and the bytes of
            its tensors by type.

        Raises:
            UserError: the file is damaged.
        """
        raise NotImplementedError(f"{self} has no files of vision towers")

    def see_command(self, repository: str, name: str, vision: str) -> str:
        """Give the shell command by which the engine shows a published file an image.

        Args:
            repository: ``user/name`` on the hub.
            name: the file's name there.
            vision: the name there of the file of its vision tower.
        """
        raise NotImplementedError(f"{self} has no files of vision towers")

    @abstractmethod
    def run_command(self, repository: str, name: str) -> str:
        """Give the shell command by which the engine runs a published file.

        Args:
            repository: ``user/name`` on the hub.
            name: the file's name there.
        """

    @abstractmethod
    def plan(self, checkpoint: Checkpoint, allocation: Allocation) -> Layout:
        """Give the exact size of a model file; only shapes, config and tokenizer are read.

        Raises:
            UserError: the allocation or the model has no form in this format.
        """

    def write(
        self,
        checkpoint: Checkpoint,
        allocation: Allocation,
        packed: PackedSource,
        path: Path,
        recipe_json: str,
        padding: int = 0,
    ) -> None:
        """Write a model file, one matrix in memory at a time; equal inputs give equal bytes.

        Args:
            checkpoint: gives everything that is not a matrix.
            allocation: matrix → type.
            packed: called once per matrix, in the checkpoint's order.
            path: the file or directory; an earlier result in its place is replaced.
            recipe_json: stored inside.
            padding: bytes by which the result shall be larger than :meth:`plan` says, in spaces
                after the recipe, so that allocations of slightly different sizes fill one
                announced size.

        Raises:
            UserError: the model has no tokenizer, the recipe has no room, or ``path`` is something
                else or cannot be written. Nothing is left behind.
        """
        self.refuse_overwrite(path, checkpoint)
        with atomic_write(path) as beside:
            self.write_new(checkpoint, allocation, packed, beside, recipe_json, padding)

    @abstractmethod
    def write_new(
        self,
        checkpoint: Checkpoint,
        allocation: Allocation,
        packed: PackedSource,
        path: Path,
        recipe_json: str,
        padding: int,
    ) -> None:
        """Write as :meth:`write` does, where nothing is yet; a failure may leave a part."""

    @abstractmethod
    def check(
        self, path: Path, checkpoint: Checkpoint, allocation: Allocation, packed: PackedSource
    ) -> None:
        """Reopen what was written and compare name, shape, type and bytes of every tensor.

        Raises:
            UserError: anything differs from what was meant; the sentence names the first tensor.
        """

    @abstractmethod
    def read_weights(self, path: Path) -> Mapping[str, Tensor]:
        """Give the weights that the engine computes with, by canonical name, read when asked for.

        They are float32 tensors, dequantized, on the CPU or on the device that is computed on.
        """

    @abstractmethod
    def holds(self, path: Path) -> bool:
        """Say whether a path is a model of this format.

        Raises:
            UserError: it is one that bitquilt cannot measure.
        """

    @abstractmethod
    def refuse_damaged(self, path: Path) -> None:
        """Refuse a file whose header cannot be read, or that ends early; it is quick to tell.

        Raises:
            UserError: the sentence says where it is damaged.
        """

    @abstractmethod
    def shapes(self, path: Path) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a model file's tensors by canonical name; none of them is read."""

    @abstractmethod
    def matrix_name(self, module: str, checkpoint: Checkpoint) -> str:
        """Return what a file calls a matrix, without ``.weight``."""

    @abstractmethod
    def stored(self, path: Path) -> list[StoredMatrix]:
        """Return the matrices of a model file and their types, whoever wrote it; none is read.

        Raises:
            UserError: the file is damaged.
        """

    def packed(self, path: Path, stored: StoredMatrix) -> Packed:
        """Read a matrix of a model file as it is packed, its rows in canonical order.

        Args:
            path: the file, whoever wrote it.
            stored: one of :meth:`stored`, on a type that bitquilt has.
        """
        raise NotImplementedError(f"no matrices are read out of files of {self}")

    @abstractmethod
    def decoded(self, path: Path, name: str) -> Tensor:
        """Decode a matrix of a model file, float32, of whatever family.

        Args:
            path: the file.
            name: what the file calls the matrix, without ``.weight``.
        """

    @abstractmethod
    def data_bytes(self, path: Path) -> int:
        """Return the bytes that the data of a model file's tensors take; none of them is read."""

    @abstractmethod
    def count_weights(self, path: Path) -> int:
        """Return the number of weights of a model file, norms and biases too, whoever wrote it.

        Raises:
            UserError: the file is damaged.
        """

    @abstractmethod
    def files(self, path: Path) -> list[Path]:
        """Return the files of a model and its recipe, as a repository of the hub has them."""

    @abstractmethod
    def recipe_path(self, path: Path) -> Path:
        """Return where the recipe of a model file is, for people to read: inside or beside it."""

    @abstractmethod
    def open_engine(self, path: Path) -> RemoteEngine:
        """Start the engine that runs files of this format on one, in a process of its own.

        The name of the file does not matter.

        Raises:
            EngineMissingError: the engine is not installed.
            UserError: the engine cannot load the file.
        """

    @abstractmethod
    def engine_tokenizer(self, checkpoint: Checkpoint) -> AbstractContextManager[Tokenize]:
        """Give the tokenizer that the engine will have of a file to be made, while it is entered.

        Raises:
            EngineMissingError: the engine is not installed.
            UserError: the engine cannot load the tokenizer.
        """

    @abstractmethod
    def refuse_overwrite(self, path: Path, checkpoint: Checkpoint) -> None:
        """Refuse a place where something is that bitquilt did not write, or the model itself.

        Raises:
            UserError: ``path`` must not be replaced.
        """
