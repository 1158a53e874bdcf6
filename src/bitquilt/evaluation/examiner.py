"""One original, and what is measured of each file against it.

Letters: N windows, L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.text import Encode
from bitquilt.engines import Engine
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation import traces
from bitquilt.evaluation.eval_file import sha256
from bitquilt.evaluation.figures import DomainFigures, Measured, by_domain
from bitquilt.evaluation.model_file import ModelFile, logits_in, logits_of
from bitquilt.evaluation.noise_floor import excerpt
from bitquilt.evaluation.reference import Reference, Talk
from bitquilt.evaluation.results import EngineCheck, FileResult, TextSample
from bitquilt.metrics.kl import TokenFigures, compare, logits
from bitquilt.metrics.teacher import require_finite
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.progress import Progress
from bitquilt.targets.layout import bits_per_weight


class Examiner:
    """Measures files against one original."""

    def __init__(
        self,
        original: Checkpoint,
        references: Sequence[Reference],
        talk: Talk | None,
        encode: Encode,
        progress: Progress,
    ) -> None:
        self._original = original
        self._references = references
        self._talk = talk
        self._progress = progress
        self._encode = encode

    def original_figures(self) -> dict[str, DomainFigures]:
        """Give the original's own figures, by domain."""
        return by_domain(self.measured([reference.own for reference in self._references]))

    def read(self, file: ModelFile) -> list[TokenFigures]:
        """Run one file over every text."""
        windows = sum(len(reference.text.tokens) for reference in self._references)
        with (
            self._progress.stage(f"Measuring {file.name}", windows),
            self._student(file) as student,
        ):
            return [
                one.compare(student(one.text.tokens), self._progress) for one in self._references
            ]

    def measured(self, found: Sequence[TokenFigures]) -> list[Measured]:
        """Give the scored tokens of every text, with what a model made of them."""
        texts = zip(self._references, found, self._nbytes, strict=True)
        return [Measured.of(*of_text) for of_text in texts]

    def result(self, file: ModelFile, found: Sequence[TokenFigures]) -> FileResult:
        """Sum up what one file made of every text, check its engine, and ask it a few questions."""
        weights = self._original.weights
        return FileResult(
            name=file.name,
            path=str(file.path),
            nbytes=file.nbytes,
            sha256=sha256(file.path),
            bits=bits_per_weight(file.tensor_bytes, weights),
            bits_on_disk=bits_per_weight(file.nbytes, weights),
            engine=file.engine if _in_engine(file) else "torch",
            figures=by_domain(self.measured(found)),
            check=self._check(file, found[0]),
            samples=self._samples(file),
        )

    def _check(self, file: ModelFile, found: TokenFigures) -> EngineCheck:
        """Compare a file in its engine and in torch with the original, and with each other."""
        here = excerpt(self._references[0], file.target)
        read = found.first(*file.target.noise_excerpt)
        student, tokens = self._in_torch(file), here.text.tokens
        hidden, head = student.last_hidden(tokens), student.head()
        with file.opened(self._original, self._encode) as engine:
            if _in_engine(file):
                in_engine, in_torch = read, here.compare(logits(hidden, head))
            else:
                in_engine, in_torch = here.compare(_checked(engine, file, tokens)), read
            between = compare(tokens, hidden, head, _checked(engine, file, tokens))
        return EngineCheck(
            in_engine=here.positive(in_engine.kl),
            in_torch=here.positive(in_torch.kl),
            apart=here.mean(in_engine.kl - in_torch.kl),
            between=here.positive(between.kl),
            tokens=int(here.text.scored.sum()),
        )

    def _samples(self, file: ModelFile) -> list[TextSample]:
        """Put a few questions to the file, and its answers beside those of the original."""
        if self._talk is None:
            return []
        asked, answers = self._talk.asked, self._talk.answers
        with (
            self._progress.stage(f"Asking {file.name}", len(asked)),
            self._speaking(file) as engine,
        ):
            if engine.info.chat_template is None:
                self._progress.say(f"{file.name} has no chat template, so nothing is asked")
                return []
            own = traces.greedy_answers(engine, asked, self._talk.config, self._progress)
        return [
            TextSample(question=question, original=original, answer=answer)
            for question, original, answer in zip(asked, answers, own, strict=True)
        ]

    @contextmanager
    def _speaking(self, file: ModelFile) -> Iterator[Engine]:
        """Open a file in an engine that is fast enough here to answer."""
        if _in_engine(file):
            with file.opened(self._original, self._encode) as engine:
                yield engine
        else:
            weights = file.target.read_weights(file.path)
            with TorchEngine(replace(self._original, reader=weights.__getitem__)) as engine:
                yield engine

    @contextmanager
    def _student(self, file: ModelFile) -> Iterator[Callable[[Tensor], Iterator[Tensor]]]:
        """Open a file as a function from windows [N, L] to the logits [L, V] of each."""
        if _in_engine(file):
            with file.opened(self._original, self._encode) as engine:
                yield lambda tokens: _checked(engine, file, tokens)
        else:
            model = self._in_torch(file)
            yield lambda tokens: require_finite(logits_of(model, tokens), str(file.path), "torch")

    def _in_torch(self, file: ModelFile) -> BlockwiseModel:
        """The weights read from a file, dequantized."""
        weights = file.target.read_weights(file.path)
        return BlockwiseModel(self._original, weights.__getitem__)

    @cached_property
    def _nbytes(self) -> list[NDArray[np.int64]]:
        """Bytes of every window of every text."""
        original = self._original
        assert original.tokenizer_dir is not None  # it has encoded the text
        tokenizer = HubTokenizer(
            original.tokenizer_dir, original.config, original.generation_config
        )
        return [reference.text.nbytes(tokenizer.decode) for reference in self._references]


def _checked(engine: Engine, file: ModelFile, tokens: Tensor) -> Iterator[Tensor]:
    """Logits [L, V] of each window [N, L] in a file's engine; NaN among them is an error."""
    return require_finite(logits_in(engine, tokens), str(file.path), file.engine)


def _in_engine(file: ModelFile) -> bool:
    """Whether its engine is fast enough here to read everything."""
    return file.target.engine_is_fast
