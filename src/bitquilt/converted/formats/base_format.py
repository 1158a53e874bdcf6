"""What differs between formats: how a base is made and read, and how a file becomes of it.

Letters: E experts of a stack (1 for a plain matrix), R rows of each, C columns, N windows of L
tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from bitquilt import qtypes
from bitquilt.allocation.recipe import Recipe
from bitquilt.bases.partners import Partner
from bitquilt.bases.statistics import BaseStatistics
from bitquilt.config import QuantizeConfig
from bitquilt.models.fingerprint import checkpoint_fingerprint
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.source import SourceMatrix
from bitquilt.targets.base import Target
from bitquilt.targets.layout import scale_bytes

RoundedMatrix = Callable[[str, str], Packed | None]
"""(matrix, type) → the whole stack as stored; None where nothing was rounded for it."""


class BaseFormat(ABC):
    """A base, and the file that becomes of it."""

    target: Target
    streams_nearest: bool
    """Whether rounding to the nearest goes through the base tensor by tensor, by
    :func:`bitquilt.streaming.from_base.stream_base`, which needs no Hessians."""
    path: Path
    """Of the base."""
    matrices: Mapping[str, SourceMatrix]
    """What can be quantized, by the base's own names."""
    stored: Mapping[str, str]
    """Name of a matrix → its type in the base."""
    weights: int
    """All weights of the model's tensors."""
    kept_bytes: int
    """The data of the tensors that are no matrices."""
    fixed_bytes: int
    """Everything but the matrices on the disk; the same for every mix."""
    kept: Mapping[str, str]
    """Tensors that stay as they are → why."""
    known: Collection[str]
    """Matrices that have importance."""

    @classmethod
    @abstractmethod
    def convert(
        cls, model: str | Path, config: QuantizeConfig, progress: Progress, *, whole: bool = True
    ) -> tuple[Path, Path]:
        """Return a model's directory and its base, which is converted if it is not there.

        Args:
            model: hub id or Hugging Face directory.
            config: what is wanted.
            progress: told what goes on.
            whole: whether more than names and sizes of tensors is wanted; a format may do it all
                the same.

        Raises:
            UserError: there is no such model or converter, or it failed.
        """

    @classmethod
    @abstractmethod
    def refuse_other_tokens(cls, path: Path, directory: Path) -> list[str]:
        """Compare the tokens of a model with those that the engine reads with a base.

        Args:
            path: of the base.
            directory: of the model.

        Returns:
            Sentences about text that is read otherwise without harm.

        Raises:
            UserError: the engine would read other tokens.
        """

    @classmethod
    @abstractmethod
    def open(cls, path: Path, name: str, config: QuantizeConfig) -> BaseFormat:
        """Read a base's headers.

        Args:
            path: of the base.
            name: of the model, which the names of files begin with.
            config: what is wanted.

        Raises:
            UserError: it is damaged, or something stands where a file beside it goes.
        """

    @property
    @abstractmethod
    def numbers(self) -> Mapping[str, Tensor]:
        """The matrices in the precision of the base, each read when it is asked for."""

    def take(  # noqa: B027 (most formats have no use for it)
        self, partners: Mapping[str, Partner | None], statistics: BaseStatistics, tokens: Tensor
    ) -> None:
        """Take what calibration found, where the format keeps some of it.

        Args:
            partners: of the matrices.
            statistics: of the partners.
            tokens: the text that was read, int64 [N, L].
        """

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files of the base that have its numbers."""

    @cached_property
    def fingerprint(self) -> str:
        """Tell the base from others, as one by another converter, whose rows go another way."""
        return checkpoint_fingerprint({}, {}, self.files)[:16]

    @property
    def pins(self) -> Mapping[str, str]:
        """Matrices whose type the engine's own class of the model decides."""
        return {}

    @abstractmethod
    def safe_type(self, name: str) -> str:
        """Return what a matrix has that no parameter has the numbers of."""

    @abstractmethod
    def nbytes(self, name: str, qtype: str) -> int:
        """Return the bytes of a matrix on a type, alignment included."""

    @abstractmethod
    def read(self, name: str, expert: int) -> Tensor:
        """Read a matrix, or one of a stack, float32 [R, C], on the device."""

    @abstractmethod
    def preset(self, name: str) -> dict[str, str]:
        """Return the types that one of the engine's presets gives all matrices.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def of_recipe(self, recipe: Recipe) -> dict[str, str]:
        """Return the types that a recipe gives all matrices.

        Raises:
            UserError: it fits another model.
        """

    @abstractmethod
    def pinned(self, recipe: Recipe) -> dict[str, str]:
        """Return those that it pins.

        Raises:
            UserError: it fits another model.
        """

    @abstractmethod
    def refuse_overwrite(self, path: Path) -> None:
        """Refuse a place where something is that bitquilt did not write.

        Raises:
            UserError: there is.
        """

    @abstractmethod
    def write(
        self, types: Allocation, rounded: RoundedMatrix, path: Path, progress: Progress
    ) -> None:
        """Write the file or directory; it is whole, or not there.

        Args:
            types: of every matrix.
            rounded: gives what was rounded.
            path: the place.
            progress: advances by weights of matrices.
        """

    @abstractmethod
    def decoded(self, path: Path) -> Callable[[str], Tensor]:
        """Return what decodes the matrices of a file that was written, float32 [E, R, C]."""

    def total_bytes(self, types: Allocation) -> int:
        """Return the bytes of everything on the disk."""
        return self.fixed_bytes + sum(self.nbytes(name, qtype) for name, qtype in types.items())

    def breakdown(self, types: Allocation) -> dict[str, int]:
        """Return the bytes of everything on the disk by kind, as those of a
        :class:`bitquilt.targets.layout.Layout`: the tokenizer is among the metadata here, and the
        embedding among the codes.
        """
        scales = sum(
            scale_bytes(qtypes.get(qtype), matrix.experts * matrix.rows, matrix.columns)
            for name, qtype in types.items()
            if takes_rounding(qtype)
            for matrix in [self.matrices[name]]
        )
        matrices = sum(self.nbytes(name, qtype) for name, qtype in types.items())
        return {
            "codes": matrices - scales,
            "scales": scales,
            "norms": self.kept_bytes,
            "metadata": self.fixed_bytes - self.kept_bytes,
        }


def takes_rounding(qtype: str) -> bool:
    """Tell whether bitquilt rounds to a type: plain floats, and a few of ggml's, it does not."""
    return qtype in qtypes.names() and not isinstance(qtypes.get(qtype), Float)
