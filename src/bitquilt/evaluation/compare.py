"""Is it still the model? Files against their original, on one page.

The original runs over the texts once, in torch and float32, and is kept; each file then runs in
the engine that it is made for. What an engine computes beside the file's weights, and what the
original differs by when nothing is quantized, are measured too: differences below that are noise.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from bitquilt import __version__
from bitquilt.calibration import corpus
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import Encode, encoder
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.evaluation import traces
from bitquilt.evaluation.config import EvalConfig
from bitquilt.evaluation.converted_original import original_of
from bitquilt.evaluation.eval_file import save_beside
from bitquilt.evaluation.examiner import Examiner
from bitquilt.evaluation.figures import Measured
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.noise_floor import floors
from bitquilt.evaluation.original import Original
from bitquilt.evaluation.reference import Reference, Talk
from bitquilt.evaluation.results import (
    Evaluation,
    FileResult,
    NoiseFloor,
    same_size_comparisons,
)
from bitquilt.evaluation.text import held_out
from bitquilt.evaluation.versions import versions
from bitquilt.evaluation.wikitext import ProtocolReference, ProtocolText
from bitquilt.models import open_original
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import require_room
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import TARGETS


def evaluate(
    models: str | Path | Sequence[str | Path],
    config: EvalConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Measure model files against the original that they were made from.

    The original also answers some questions of the text, on which the files are measured too.
    What it writes and what it makes of the text is kept for the next evaluation, answer by answer.
    The figures of each file are kept beside it, in ``<name>.eval.json``.

    Args:
        models: GGUF files and MLX directories, whoever made them; one, or several.
        config: what they are measured against, and on what text.
        progress: where progress goes; stderr if not given.
        options: the fields of :class:`bitquilt.EvalConfig`, instead of a config.

    Raises:
        UserError: bad input, an engine that is missing, a file of another model: one sentence.
    """
    config = EvalConfig.of(config, options)
    with computing(config.device, config.threads):
        return _evaluate(models, config, progress or Progress())


def _evaluate(
    models: str | Path | Sequence[str | Path], config: EvalConfig, progress: Progress
) -> Evaluation:
    started = time.monotonic()
    files, checkpoint = _opened(models, config)
    encode = encoder(checkpoint)
    protocol = ProtocolText.of(Path(config.wikitext), encode) if config.wikitext else None
    original = original_of(checkpoint, config.against, files, progress)
    tokens = protocol.tokens.numel() if protocol else 0
    with progress.job(original.stages(files, config, tokens)):
        return _measured(files, original, protocol, encode, config, progress, started)


def _measured(
    files: Sequence[ModelFile],
    original: Original,
    protocol: ProtocolText | None,
    encode: Encode,
    config: EvalConfig,
    progress: Progress,
    started: float,
) -> Evaluation:
    """Run the original over the text, and measure each file against it."""
    documents, calibrated = _documents(config), _calibrated(config)
    for file in files:
        file.try_out(original.checkpoint, encode)
    examiner, noise = _read_original(
        original, documents, calibrated, protocol, encode, files, config, progress
    )
    evaluation = Evaluation(
        original=original.name,
        fingerprint=original.checkpoint.fingerprint,
        text=corpus.fingerprint(documents),
        own=examiner.original_figures(),
        files=(),
        floors=noise,
        comparisons=(),
        versions=versions(),
        seconds=0.0,
    )
    results: list[FileResult] = []
    measured: list[Measured] = []
    for file in files:
        result, of_text = examiner.examine(file)
        results.append(result)
        measured.append(of_text)
        seconds = time.monotonic() - started
        save_beside(replace(evaluation, files=results[-1:], seconds=seconds))
    return replace(
        evaluation,
        files=results,
        comparisons=same_size_comparisons(results, measured),
        seconds=time.monotonic() - started,
    )


def _opened(
    models: str | Path | Sequence[str | Path], config: EvalConfig
) -> tuple[list[ModelFile], Checkpoint]:
    """Find the files and their original, and refuse before any work what cannot be measured.

    Raises:
        UserError: a file does not exist, was not made from the original, or has no room beside it.
    """
    files = ModelFile.several(models)
    original = open_original(config.against)
    if original.known:
        original.load("model.norm.weight")  # a config without weights is refused now, not later
    for file in files:
        file.check(original)
        require_room(file.path.resolve().parent, 0)  # its figures go beside it
    return files, original


def _documents(config: EvalConfig) -> Sequence[Document]:
    """Give the text that is read."""
    return corpus.from_file(Path(config.text)) if config.text else corpus.bundled("held-out")


def _calibrated(config: EvalConfig) -> frozenset[str] | None:
    """Give the domains that a file was calibrated on, if it was on the bundled text; None where a
    user's text is read, whose domains nobody can compare with them.
    """
    if config.text is not None:
        return None
    return frozenset(document.domain for document in corpus.bundled("calibration"))


def _read_original(
    original: Original,
    documents: Sequence[Document],
    calibrated: frozenset[str] | None,
    protocol: ProtocolText | None,
    encode: Encode,
    files: Sequence[ModelFile],
    config: EvalConfig,
    progress: Progress,
) -> tuple[Examiner, Sequence[NoiseFloor]]:
    """Run the original over every text, or take what an earlier evaluation kept.

    Returns:
        what measures files against it, and what is noise.
    """
    with _work_dir(original.checkpoint, config) as work:
        texts = [held_out(documents, encode, config.tokens, WINDOW, progress, calibrated or ())]
        talk = _talk(original, documents, config, work, progress)
        if talk is not None:
            texts.append(talk.drawn)
        model = original.reading(work)
        tokens = sum(text.tokens.numel() for text in texts)
        tokens += protocol.tokens.numel() if protocol else 0
        reading = tokens * original.weights_per_token
        with progress.stage(f"{original.name} reads", reading, "reading"):
            references = [Reference.of(model, text, progress.advance) for text in texts]
            passage = ProtocolReference.of(model, protocol, progress.advance) if protocol else None
        targets = [t for t in TARGETS.values() if any(file.target is t for file in files)]
        noise = floors(original, references[0], targets, encode, work, progress)
    return Examiner(original, references, calibrated, talk, passage, encode, progress), noise


def _work_dir(original: Checkpoint, config: EvalConfig) -> WorkDir:
    """Open the place where the original's answers are kept."""
    settings = {
        "evaluation of": original.name,
        "checkpoint": original.fingerprint,
        "versions": {"bitquilt": __version__, "torch": torch.__version__},
    }
    return WorkDir(Path(config.work_dir) if config.work_dir else _cache(settings), settings)


def _cache(settings: dict[str, Any]) -> Path:
    """Where the original's answers are kept, if the user names no place.

    What other versions said is elsewhere, so that an upgrade is not a conflict of settings.
    """
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return user_cache_path("bitquilt") / f"{settings['evaluation of']}-{key}"


def _talk(
    original: Original,
    documents: Sequence[Document],
    config: EvalConfig,
    work: WorkDir,
    progress: Progress,
) -> Talk | None:
    """Let the original answer, if it has a chat template and the text has questions."""
    count, length = config.traces.within(config.tokens)
    if count == 0:
        return None
    asked = traces.questions(documents, count)
    if original.checkpoint.chat_template is None:
        progress.say(
            f"{original.name} has no chat template, so it cannot be asked questions: files are "
            "measured on the text alone"
        )
        return None
    if not asked:
        progress.say(
            "The text has no conversations, so there are no questions to ask: files are measured "
            "on the text alone"
        )
        return None
    return Talk.of(original, asked, config.traces, length, work, progress)
