"""A model file to be measured: what it is on disk, and its logits in an engine or in torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import Encode
from bitquilt.engines import Engine
from bitquilt.engines.remote import RemoteEngine
from bitquilt.errors import UserError
from bitquilt.evaluation.file_format import format_of
from bitquilt.gguf.header import part_paths
from bitquilt.metrics.teacher import require_finite
from bitquilt.models.blockwise import Advance, ignore, logit_tokens
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.files import each_path
from bitquilt.targets import Target
from bitquilt.targets.base import StoredMatrix
from bitquilt.targets.engine_check import SAMPLE

TRIED_OF_SHAPE = 4
"""Matrices of each shape that are compared with those of an original that is not known."""
ALIKE = 0.5
"""The least cosine of a matrix and the original's; signs alone have 0.8, unrelated ones 0."""


class TorchModel(Protocol):
    """A model in torch, in two steps."""

    def last_hidden(self, tokens: Tensor, advance: Advance = ignore) -> Tensor:
        """Read tokens int64 [N, L]; returns last hidden states [N, L, D].

        ``advance`` is told of tokens × weights up to the head.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [T, V] of last hidden states [T, D]."""


@dataclass(frozen=True)
class ModelFile:
    """A GGUF file or an MLX directory."""

    path: Path
    target: Target
    """Its format."""
    nbytes: int
    """On disk, everything counted."""
    name: str
    """For tables."""

    @classmethod
    def several(cls, references: str | Path | Sequence[str | Path]) -> list[ModelFile]:
        """What paths hold; those with the same last part are called by their whole paths.

        Raises:
            UserError: a path holds no model, or is given twice.
        """
        return told_apart([cls.at(reference) for reference in each_path(references)])

    @classmethod
    def at(cls, reference: str | Path) -> ModelFile:
        """What a path holds.

        Raises:
            UserError: neither of the two.
        """
        path = Path(reference)
        if path.name == "":  # "." has none to put figures beside
            path = Path(os.path.abspath(path))
        target = format_of(path)
        inside = part_paths(path) if path.is_file() else path.rglob("*")
        files = (file for file in inside if file.is_file())
        return cls(path, target, sum(file.stat().st_size for file in files), path.name)

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return self.target.engine

    @property
    def tensor_bytes(self) -> int:
        """The data of its tensors, none of them read."""
        return self.target.data_bytes(self.path)

    @property
    def weights(self) -> int:
        """The number of its weights, as they are before rounding."""
        return self.target.count_weights(self.path)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Its tensors by canonical name, none of them read."""
        return self.target.shapes(self.path)

    def check(self, original: Checkpoint) -> None:
        """Refuse a file that cannot have been made from the original.

        Its tensors have to have the original's shapes, and the smallest matrix its values: whatever
        a matrix is rounded to points where the original does. Of a family that is not known, some
        matrix has to point where one of the original's of its shape does.

        Raises:
            UserError: a tensor has another shape, is not there, or has nothing of the original.
        """
        if not original.known:
            self._check_some(original)
            return
        own = self.shapes
        for name, shape in original.shapes.items():
            if own.get(name) != shape:
                raise UserError(
                    f"{self.path} was not made from {original.name}: {name} is "
                    f"{own.get(name, 'missing')} there and {shape} in the original; give the "
                    "original of this file to --against"
                )
        matrix = min(original.matrices, key=lambda one: math.prod(original.matrices[one]))
        name = f"{matrix}.weight"
        here = self.target.read_weights(self.path)[name].flatten()
        alike = _cosine(here, original.load(name, here.device))
        if alike < ALIKE:
            raise UserError(
                f"{self.path} was not made from {original.name}: {name} has the same shape there "
                f"but other values (a cosine of {alike:.2f}); give the original of this file to "
                "--against"
            )

    def _check_some(self, original: Checkpoint) -> None:
        """Look for a matrix that points where one of the original's of its shape does.

        Converters turn rows of some kinds of matrices, so a few of each shape are tried.
        """
        shapes: dict[tuple[int, int], list[StoredMatrix]] = {}
        for one in self.target.stored(self.path):
            shapes.setdefault((one.rows, one.columns), []).append(one)
        for shape in sorted(shapes, key=math.prod):
            theirs = [name for name, own in original.shapes.items() if own == shape]
            for stored in shapes[shape][:TRIED_OF_SHAPE] if theirs else ():
                here = self.target.decoded(self.path, stored.name)
                if any(_cosine(here, original.load(name, here.device)) > ALIKE for name in theirs):
                    return
        raise UserError(
            f"{self.path} was not made from {original.name}: no matrix of it has values like one "
            "of the original's; give the original of this file to --against"
        )

    def try_out(self, original: Checkpoint, encode: Encode) -> None:
        """Let the engine read a line, so that what cannot be measured is refused before long work.

        Raises:
            UserError: the engine is missing or refuses the file, reads text otherwise, or computes
                NaN or infinity.
        """
        with self.opened(original, encode) as engine:
            tokens = encode(Document("check", "sample", SAMPLE, None))
            for _ in require_finite(
                logits_in(engine, torch.tensor([tokens])), str(self.path), self.engine
            ):
                pass

    def start(self) -> RemoteEngine:
        """The file in its engine, in a process of its own."""
        return self.target.open_engine(self.path)

    @contextmanager
    def opened(self, original: Checkpoint, encode: Encode) -> Iterator[Engine]:
        """The file in its engine, found to read text as the original does.

        Raises:
            UserError: the engine is missing or refuses the file, or reads text otherwise.
        """
        with self.start() as engine:
            ours = encode(Document("check", "sample", SAMPLE, None))
            if engine.tokenize(SAMPLE, add_special=True) != ours:
                raise UserError(
                    f"{self.path}: {self.engine} splits text into other tokens than "
                    f"{original.name}'s own tokenizer does; give the original of this file to "
                    "--against"
                )
            yield engine


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def told_apart(models: Sequence[Any]) -> list[Any]:
    """Models with names that differ: their whole paths where their last parts are the same.

    Raises:
        UserError: one is given twice.
    """
    places = [one.path.resolve() for one in models]
    for one, place in zip(models, places, strict=True):
        if (times := places.count(place)) > 1:
            raise UserError(f"{one.path} is given {times} times; give it once")
    count = Counter(one.name for one in models)
    return [replace(one, name=str(one.path)) if count[one.name] > 1 else one for one in models]


def logits_in(engine: Engine, tokens: Tensor, vocabulary: int | None = None) -> Iterator[Tensor]:
    """Logits [L, V] of each window of int64 [N, L]; files may have more tokens than V."""
    return (torch.from_numpy(window)[:, :vocabulary] for window in engine.logits(tokens.numpy()))


def predicting(model: TorchModel, hidden: Tensor, vocabulary: int) -> Iterator[Tensor]:
    """Yield the logits [n, V] that predict a next token, of hidden states [N, L, D]; few at a time.

    Args:
        model: that made them.
        hidden: its last hidden states.
        vocabulary: V.
    """
    for window in hidden:
        for some in window[:-1].split(logit_tokens(vocabulary)):
            yield model.logits(some)


def counted(student: Iterator[Tensor], weights: int, advance: Advance) -> Iterator[Tensor]:
    """Pass on logits [n, V] of consecutive tokens; ``advance`` is told of tokens × ``weights``."""
    for tokens in student:
        advance(len(tokens) * weights)
        yield tokens
