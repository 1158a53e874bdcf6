"""Is it still the model? Files against their original, on one page.

The original runs over the texts once, in torch and float32, and is kept; each file then runs in
the engine that it is made for. What an engine computes beside the file's weights, and what the
original differs by when nothing is quantized, are measured too: differences below that are noise.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor

from bitquilt import __version__
from bitquilt.calibration import corpus
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import Encode, encoder
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.engines import Engine
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.engines.torch import TorchEngine
from bitquilt.evaluation import traces
from bitquilt.evaluation.eval_file import save_beside, sha256
from bitquilt.evaluation.figures import Figures, Measured, by_domain
from bitquilt.evaluation.model_file import ModelFile, logits_in, logits_of
from bitquilt.evaluation.noise_floor import excerpt, floors
from bitquilt.evaluation.reference import Reference, Talk
from bitquilt.evaluation.results import (
    Comparison,
    EngineCheck,
    Evaluation,
    FileResult,
    TextSample,
    same_size_comparisons,
)
from bitquilt.evaluation.text import held_out
from bitquilt.evaluation.versions import versions
from bitquilt.metrics.kl import TokenFigures, compare, logits
from bitquilt.metrics.original import OriginalModel
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.files import require_room
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import TARGETS

TOKENS = 65_536


def evaluate(
    models: Sequence[str | Path],
    *,
    against: str,
    text: str | Path | None = None,
    tokens: int = TOKENS,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure model files against the original that they were made from.

    The figures of each are also kept beside it.

    Args:
        models: GGUF files and MLX directories, whoever made them.
        against: the original: hub id, Hugging Face directory, GGUF file, or ``demo``.
        text: documents (.txt or .jsonl) instead of the bundled held-out ones.
        tokens: about how many tokens of them to read.
        work_dir: keeps what the original says, for the next evaluation; in the user's cache if not
            given.
        progress: where progress goes.

    Raises:
        UserError: bad input, an engine that is missing, a file of another model: one sentence.
    """
    started = time.monotonic()
    progress = progress or Progress()
    candidates = ModelFile.several(models)
    original = open_checkpoint(against)
    original.load("model.norm.weight")  # a config without weights is refused now, not later
    for candidate in candidates:
        candidate.check(original)
        require_room(candidate.path.resolve().parent, 0)  # its figures go beside it
    documents = corpus.from_file(Path(text)) if text else corpus.bundled("held-out")
    settings = {
        "evaluation of": original.name,
        "checkpoint": original.fingerprint,
        "versions": {"bitquilt": __version__, "torch": torch.__version__},
    }
    with WorkDir(Path(work_dir) if work_dir else _cache(settings), settings) as work:
        encode = encoder(original)
        texts = [held_out(documents, encode, tokens, WINDOW, progress)]
        talk = _talk(original, documents, work, progress)
        if talk is not None:
            texts.append(talk.traces)
        with progress.stage(f"Running {original.name}", len(texts)):
            references, model = [], OriginalModel(original, work)
            for one in texts:
                references.append(Reference.of(model, one))
                progress.advance()
        targets = [t for t in TARGETS.values() if any(c.target is t for c in candidates)]
        noise = floors(original, references[0], targets, encode, work, progress)
    judge = Judge(original, references, talk, encode, progress)
    own, digest = judge.own(), corpus.fingerprint(documents)

    def evaluation(files: Sequence[FileResult], comparisons: Sequence[Comparison]) -> Evaluation:
        return Evaluation(
            original=original.name,
            fingerprint=original.fingerprint,
            text=digest,
            own=own,
            files=files,
            floors=noise,
            comparisons=comparisons,
            versions=versions(),
            seconds=time.monotonic() - started,
        )

    files: list[FileResult] = []
    texts_read: list[Measured] = []
    for candidate in candidates:
        found = judge.read(candidate)
        files.append(judge.row(candidate, found))
        texts_read.append(judge.measured(found)[0])
        save_beside(evaluation(files[-1:], []))
    return evaluation(files, same_size_comparisons(files, texts_read))


def _cache(settings: dict[str, Any]) -> Path:
    """Where the original's answers are kept, if the user names no place.

    What other versions said is elsewhere, so that an upgrade is no conflict of settings.
    """
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return user_cache_path("bitquilt") / f"{settings['evaluation of']}-{key}"


def _talk(
    original: Checkpoint, documents: Sequence[Document], work: WorkDir, progress: Progress
) -> Talk | None:
    """The original's own reasoning, if it has a chat template and the text has questions."""
    asked = traces.questions(documents)
    if original.chat_template is None:
        progress.say(f"{original.name} has no chat template, so it writes no reasoning traces")
        return None
    if not asked:
        progress.say("the text has no conversations, so there are no reasoning traces")
        return None
    return Talk.of(original, asked, work, progress)


class Judge:
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

    def own(self) -> dict[str, Figures]:
        """The original's own figures."""
        return by_domain(self.measured([reference.own for reference in self._references]))

    def read(self, candidate: ModelFile) -> list[TokenFigures]:
        """Every text under one file."""
        windows = sum(len(reference.text.tokens) for reference in self._references)
        with (
            self._progress.stage(f"Measuring {candidate.name}", windows),
            self._student(candidate) as student,
        ):
            return [
                one.compare(student(one.text.tokens), self._progress) for one in self._references
            ]

    def measured(self, found: Sequence[TokenFigures]) -> list[Measured]:
        """The judged tokens of every text, of what a model made of them."""
        texts = zip(self._references, found, self._nbytes, strict=True)
        return [Measured.of(*of_text) for of_text in texts]

    def row(self, candidate: ModelFile, found: Sequence[TokenFigures]) -> FileResult:
        """A file's line of the table."""
        weights = sum(torch.Size(shape).numel() for shape in self._original.shapes.values())
        return FileResult(
            name=candidate.name,
            path=str(candidate.path),
            nbytes=candidate.nbytes,
            sha256=sha256(candidate.path),
            bits=candidate.nbytes * 8 / weights,
            engine=candidate.engine if _in_engine(candidate) else "torch",
            figures=by_domain(self.measured(found)),
            check=self._check(candidate, found[0]),
            samples=self._samples(candidate),
        )

    def _check(self, candidate: ModelFile, found: TokenFigures) -> EngineCheck:
        """A file in its engine and in torch, and the two against each other."""
        here = excerpt(self._references[0], candidate.target)
        read = found.first(*candidate.target.noise_excerpt)
        student, tokens = self._in_torch(candidate), here.text.tokens
        hidden, head = student.last_hidden(tokens), student.head()
        with candidate.opened(self._original, self._encode) as engine:
            if _in_engine(candidate):
                in_engine, in_torch = read, here.compare(logits(hidden, head))
            else:
                in_engine, in_torch = here.compare(logits_in(engine, tokens)), read
            between = compare(tokens, hidden, head, logits_in(engine, tokens))
        return EngineCheck(
            in_engine=here.mean(in_engine.kl),
            in_torch=here.mean(in_torch.kl),
            apart=here.mean(in_engine.kl - in_torch.kl),
            between=here.mean(between.kl),
            tokens=int(here.text.judged.sum()),
        )

    def _samples(self, candidate: ModelFile) -> list[TextSample]:
        """Answers of the file beside those of the original."""
        if self._talk is None:
            return []
        asked, answers = self._talk.asked, self._talk.answers
        with (
            self._progress.stage(f"Asking {candidate.name}", len(asked)),
            self._speaking(candidate) as engine,
        ):
            if engine.info.chat_template is None:
                self._progress.say(f"{candidate.name} has no chat template, so nothing is asked")
                return []
            own = traces.greedy(engine, asked, self._progress)
        return [
            TextSample(question=question, original=original, answer=answer)
            for question, original, answer in zip(asked, answers, own, strict=True)
        ]

    @contextmanager
    def _speaking(self, candidate: ModelFile) -> Iterator[Engine]:
        """A file in an engine that is fast enough here to answer."""
        if _in_engine(candidate):
            with candidate.opened(self._original, self._encode) as engine:
                yield engine
        else:
            weights = candidate.target.read_weights(candidate.path)
            with TorchEngine(replace(self._original, reader=weights.__getitem__)) as engine:
                yield engine

    @contextmanager
    def _student(self, candidate: ModelFile) -> Iterator[Callable[[Tensor], Iterator[Tensor]]]:
        """A file as a function from windows [N, L] to the logits [L, V] of each."""
        if _in_engine(candidate):
            with candidate.opened(self._original, self._encode) as engine:
                yield partial(logits_in, engine)
        else:
            yield partial(logits_of, self._in_torch(candidate))

    def _in_torch(self, candidate: ModelFile) -> BlockwiseModel:
        """The weights read from a file, dequantized."""
        weights = candidate.target.read_weights(candidate.path)
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


def _in_engine(candidate: ModelFile) -> bool:
    """Whether its engine is fast enough here to read everything."""
    return candidate.target.engine_is_fast
