"""One original, and what is measured of each file against it.

Letters: N windows, L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.text import Encode
from bitquilt.engines import Engine
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.evaluation import traces
from bitquilt.evaluation.eval_file import sha256
from bitquilt.evaluation.figures import DomainFigures, Measured, by_domain
from bitquilt.evaluation.model_file import (
    ModelFile,
    TorchModel,
    counted,
    logits_in,
    predicting,
)
from bitquilt.evaluation.noise_floor import excerpt
from bitquilt.evaluation.original import Original
from bitquilt.evaluation.reference import WRITING, Reference, Talk
from bitquilt.evaluation.results import EngineCheck, FileResult, TextSample
from bitquilt.evaluation.wikitext import ProtocolReference, WikitextFigures
from bitquilt.metrics.kl import TokenFigures, compare_logits
from bitquilt.metrics.teacher import require_finite
from bitquilt.runtime.progress import Progress
from bitquilt.targets.layout import bits_per_weight


class Examiner:
    """Measures files against one original."""

    def __init__(
        self,
        original: Original,
        references: Sequence[Reference],
        calibrated: Collection[str] | None,
        talk: Talk | None,
        protocol: ProtocolReference | None,
        encode: Encode,
        progress: Progress,
    ) -> None:
        self._original = original
        self._references = references
        self._calibrated = calibrated
        self._talk = talk
        self._protocol = protocol
        self._progress = progress
        self._encode = encode

    def original_figures(self) -> dict[str, DomainFigures]:
        """Give the original's own figures, by domain."""
        own = self.measured([reference.own for reference in self._references])
        return by_domain(own, self._calibrated)

    def examine(self, file: ModelFile) -> tuple[FileResult, Measured]:
        """Run one file over every text, check its engine, and put a few questions to it.

        Returns:
            the result, and the figures of every token of the text that files are compared by.
        """
        with file.opened(self._original.checkpoint, self._encode) as engine:
            with self._progress.stage(f"Measuring {file.name}", self._work(file), "file"):
                figures, check = self._read(file, engine)
                wikitext = self._by_protocol(file, engine)
            samples = self._samples(file, engine)
        measured, weights = self.measured(figures), file.weights
        result = FileResult(
            name=file.name,
            path=str(file.path),
            nbytes=file.nbytes,
            sha256=sha256(file.path),
            bits=bits_per_weight(file.tensor_bytes, weights),
            bits_on_disk=bits_per_weight(file.nbytes, weights),
            engine=file.engine if _in_engine(file) else "torch",
            figures=by_domain(measured, self._calibrated),
            check=check,
            samples=samples,
            wikitext=wikitext,
        )
        if self._calibrated is None:
            return result, measured[0]
        return result, next(iter(measured[0].by_kind(self._calibrated).values()))

    def measured(self, found: Sequence[TokenFigures]) -> list[Measured]:
        """Give the scored tokens of every text, with what a model made of them."""
        texts = zip(self._references, found, self._nbytes, strict=True)
        return [Measured.of(*of_text) for of_text in texts]

    def _read(self, file: ModelFile, engine: Engine) -> tuple[list[TokenFigures], EngineCheck]:
        """Compare a file with the original, and its engine with torch on an excerpt.

        All texts are read by the engine, or by torch where the engine is slow here; it then reads
        the excerpt alone.
        """
        here, name = excerpt(self._references[0], file.target), str(file.path)
        tokens, advance = here.text.tokens, self._progress.advance
        model, vocabulary = self._original.with_file(file), here.vocabulary
        hidden = model.last_hidden(tokens, advance)
        between = _Between(tokens, hidden, model)

        def in_engine(reference: Reference) -> TokenFigures:
            student = logits_in(engine, reference.text.tokens, vocabulary)
            work = self._original.weights_per_token + reference.comparing
            finite = require_finite(counted(student, work, advance), name, file.engine)
            return reference.compare(between.passing(finite))

        def in_torch(reference: Reference, student: Iterator[Tensor]) -> TokenFigures:
            work = self._original.head_weights + reference.comparing
            finite = require_finite(counted(student, work, advance), name, "torch")
            return reference.compare(finite)

        torch_here = in_torch(here, predicting(model, hidden, vocabulary))
        if _in_engine(file):
            found = [in_engine(reference) for reference in self._references]
            engine_here = found[0].first(*file.target.noise_excerpt)
        else:
            found = [
                in_torch(reference, predicting(model, read, vocabulary))
                for reference in self._references
                for read in [model.last_hidden(reference.text.tokens, advance)]
            ]
            engine_here = in_engine(here)
        check = EngineCheck(
            in_engine=here.positive(engine_here.kl),
            in_torch=here.positive(torch_here.kl),
            apart=here.mean(engine_here.kl - torch_here.kl),
            between=here.positive(between.kl),
            tokens=int(here.text.scored.sum()),
        )
        return found, check

    def _by_protocol(self, file: ModelFile, engine: Engine) -> WikitextFigures | None:
        """Measure a file as llama-perplexity does, if that was asked for."""
        if self._protocol is None:
            return None
        tokens, advance = self._protocol.teacher.tokens, self._progress.advance
        original, vocabulary = self._original, self._references[0].vocabulary
        if _in_engine(file):
            name, work = file.engine, original.weights_per_token
            student = logits_in(engine, tokens, vocabulary)
        else:
            name, work, model = "torch", original.head_weights, original.with_file(file)
            student = predicting(model, model.last_hidden(tokens, advance), vocabulary)
        work += 2 * original.head_weights
        finite = require_finite(counted(student, work, advance), str(file.path), name)
        return self._protocol.figures(finite)

    def _work(self, file: ModelFile) -> int:
        """Give the tokens × weights of :meth:`_read`."""
        texts = sum(reference.text.tokens.numel() for reference in self._references)
        texts += self._protocol.teacher.tokens.numel() if self._protocol else 0
        again = excerpt(self._references[0], file.target).text.tokens.numel()
        times = 1 if _in_engine(file) else 2
        per_token = self._original.weights_per_token + self._references[0].comparing
        return (texts + again * times) * per_token

    def _samples(self, file: ModelFile, engine: Engine) -> list[TextSample]:
        """Put a few questions to the file, and its answers beside those of the original."""
        if self._talk is None or not self._talk.asked:
            return []
        if engine.info.chat_template is None:
            self._progress.say(f"{file.name} has no chat template, so it cannot be asked questions")
            return []
        asked, length = self._talk.asked, self._talk.length
        weights = self._original.weights_per_token * WRITING
        own: dict[int, str] = {}
        with (
            self._progress.stage(f"{file.name} answers", len(asked) * length * weights, "answers"),
            self._speaking(file, engine) as speaker,
        ):
            traces.write_answers(
                speaker,
                [traces.likeliest(traces.prompt_of(speaker, one), length) for one in asked],
                lambda number, answer: own.update({number: answer.text}),
                lambda tokens: self._progress.advance(tokens * weights),
            )
        return [
            TextSample(question=question, original=original, answer=own[number])
            for number, (question, original) in enumerate(
                zip(asked, self._talk.answers, strict=True)
            )
        ]

    @contextmanager
    def _speaking(self, file: ModelFile, engine: Engine) -> Iterator[Engine]:
        """Give the engine of a file, or torch with its weights where that is faster here."""
        if _in_engine(file):
            yield engine
            return
        with self._original.file_speaker(file, engine) as speaker:
            yield speaker

    @cached_property
    def _nbytes(self) -> list[NDArray[np.int64]]:
        """Bytes of every window of every text."""
        original = self._original.checkpoint
        assert original.tokenizer_dir is not None  # it has encoded the text
        tokenizer = HubTokenizer(
            original.tokenizer_dir, original.config, original.generation_config
        )
        return [reference.text.nbytes(tokenizer.decode) for reference in self._references]


def _in_engine(file: ModelFile) -> bool:
    """Whether its engine is fast enough here to read everything."""
    return file.target.engine_is_fast


class _Between:
    """Compares an engine with torch on an excerpt of a text, while the engine's logits pass by."""

    def __init__(self, tokens: Tensor, hidden: Tensor, model: TorchModel) -> None:
        """The excerpt [N, L], and what a model in torch made of it: hidden states [N, L, D]."""
        self._torch = tokens, hidden, model
        self._found: list[NDArray[np.float32]] = []

    def passing(self, engine: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass on the logits of windows, of which the first begin with those of the excerpt."""
        tokens, hidden, model = self._torch
        for window in engine:
            if (row := len(self._found)) < len(tokens):
                read, own = hidden[row], window[: tokens.shape[1]]
                self._found.append(_kl_between(model, tokens[row], read, own))
            yield window

    @property
    def kl(self) -> NDArray[np.float32]:
        """KL(torch ‖ engine) of every predicted token of the excerpt [N, L − 1]."""
        return np.concatenate(self._found)


def _kl_between(
    model: TorchModel, tokens: Tensor, hidden: Tensor, own: Tensor
) -> NDArray[np.float32]:
    """KL(model ‖ engine) [1, L − 1] of tokens [L], by hidden states [L, D] and logits [L, V]."""

    def logits(_: int, part: slice) -> Tensor:
        return model.logits(hidden[part])

    return compare_logits(tokens[None], logits, iter([own])).kl
