"""Models that bitquilt has no tables of: converted, calibrated, rounded, written.

Read :func:`converted_run` first. Statistics and rounded matrices stay in the work directory, so
that other sizes and formats, or a run that was stopped, find them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bitquilt import __version__
from bitquilt.allocation.budget import budgets_of, label_of
from bitquilt.bases.importance import load_transformers_model, match_base
from bitquilt.bases.reading import BaseReading
from bitquilt.bases.served_base import end_served
from bitquilt.bases.statistics import FISHER, BaseStatistics, keep_statistics
from bitquilt.calibration.text import HeldOutText
from bitquilt.config import QuantizeConfig
from bitquilt.converted.allocation import (
    asked_types,
    best_allocation,
    candidates_of,
    planned_file,
    recipe_of,
)
from bitquilt.converted.closing import BaseClosing
from bitquilt.converted.formats import FORMATS
from bitquilt.converted.formats.base_format import BaseFormat
from bitquilt.converted.layer_passes import LayerPasses, MatchedBase, keeps_nothing
from bitquilt.converted.moments import BaseMoments
from bitquilt.converted.prediction import predicted_nats
from bitquilt.converted.rounding import base_rounding_work, round_base
from bitquilt.errors import NotFiniteError, UserError
from bitquilt.metrics.teacher import HeldOutFigures
from bitquilt.models import open_original
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.sources.as_published import open_as_published
from bitquilt.rounding import ROUNDING_VERSION
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import refuse_file, remove, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.streaming.base import BaseText, base_name, write_base_vision
from bitquilt.streaming.quantize_gguf import GgufPlan, GgufResult
from bitquilt.streaming.trial import try_base
from bitquilt.targets import parse_targets
from bitquilt.targets.engine_check import EngineExcerpt

BASE_WORK_FORMAT = 2
"""Raised when artefacts mean something else."""


@dataclass(frozen=True)
class ConvertedModel:
    """A model beside its bases."""

    name: str
    directory: Path
    places: dict[str, Path]
    """Format → the base."""


@dataclass(frozen=True, kw_only=True)
class ConvertedResult(GgufResult):
    """A file or directory that a :class:`ConvertedRun` wrote."""

    original: HeldOutFigures | None = None
    """The figures of the full-precision model, by torch; None where nothing was measured."""
    figures: HeldOutFigures | None = None
    """The file's, of the numbers read back from it."""
    engine: EngineExcerpt | None = None
    """The file in its engine and in transformers, on the same excerpt of that text; None where it
    was not run."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        found = {name: getattr(self, name) for name in ("original", "figures", "engine")}
        return super().to_dict() | {name: own and asdict(own) for name, own in found.items()}


@contextmanager
def converted_run(
    model: str | Path, config: QuantizeConfig, progress: Progress
) -> Iterator[ConvertedRun]:
    """Convert a model, calibrate it, and give what makes the files; its work directory is open.

    Args:
        model: hub id or Hugging Face directory.
        config: what is wanted; its ``base`` is a GGUF file that was converted already.
        progress: told what goes on.

    Raises:
        UserError: bad input, no converter, a size that cannot be met: one sentence.
    """
    refuse_file(Path(config.output), "--output")
    recipe_of(config)
    with ExitStack() as stack:
        stack.enter_context(computing(config.device, config.threads))
        converted = _converted(model, config, progress)
        for path in converted.places.values():
            stack.callback(end_served, path)
        yield ConvertedRun(converted, config, progress, stack)


def _converted(model: str | Path, config: QuantizeConfig, progress: Progress) -> ConvertedModel:
    """Convert a model to every format that is asked for, and compare the tokens there."""
    output, places, directory = Path(config.output), {}, Path()
    for target in parse_targets(config.to):
        kind = FORMATS[target.name]
        directory, places[target.name] = kind.convert(model, config, progress)
        if config.engine_check:
            for note in kind.refuse_other_tokens(places[target.name], directory):
                progress.say(note)
        write_base_vision(target, model, directory, output, progress)
    return ConvertedModel(base_name(model, directory), directory, places)


def _opened_model(directory: Path, name: str) -> Checkpoint:
    """Open a model as the card and ``eval`` will; one that they refuse has a base all the same."""
    try:
        return open_original(directory)
    except UserError:
        return open_as_published(directory, name)


class ConvertedRun:
    """One command on one model."""

    checkpoint: Checkpoint
    """The model."""
    config: QuantizeConfig
    bases: Mapping[str, BaseFormat]
    """Format → the base."""
    work: WorkDir
    """Open as long as the run."""

    def __init__(
        self,
        converted: ConvertedModel,
        config: QuantizeConfig,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        """Refuse what is wrong with places and sizes, load the model, and calibrate."""
        self._name, self.config, self._progress = converted.name, config, progress
        self._passes: LayerPasses | None = None
        self._output = Path(config.output)
        self.bases = {
            name: FORMATS[name].open(path, converted.name, config)
            for name, path in converted.places.items()
        }
        for base in self.bases.values():
            self._refuse_impossible(base)
        self._calibrate(converted.directory, stack)

    def _refuse_impossible(self, base: BaseFormat) -> None:
        """Refuse before any work what no result could come of."""
        recipe, budgets = recipe_of(self.config), budgets_of(self.config)
        for budget in budgets:
            candidates_of(base, (), recipe, budget)
        asked_types(base, self.config)
        for bits in [budget.bits for budget in budgets] or [None]:
            base.refuse_overwrite(self._place(base, self._label(bits)))

    def _calibrate(self, directory: Path, stack: ExitStack) -> None:
        """Match bases and model, collect statistics, and read the closing text."""
        progress = self._progress
        with progress.stage("Matching the base with the model", 1, "matching"):
            model = load_transformers_model(directory)
            self._partners = {
                name: match_base(base.numbers, base.path, model, directory)
                for name, base in self.bases.items()
            }
            progress.advance()
        self._say_alone()
        text = BaseText(model, directory, self.config)
        self._tokens, (closing, lacking) = text.calibration(), text.closing()
        if lacking:
            progress.say(lacking)
        if self.config.engine_check:
            for base in self.bases.values():
                try_base(base.path, base.target, model, self._tokens[0], progress)
        self.checkpoint = _opened_model(directory, self._name)
        for note in self.checkpoint.to_be_told:
            progress.say(note)
        place = self.config.work_directory(self._name)
        settings = self._settings(self.checkpoint.fingerprint)
        self.work = stack.enter_context(WorkDir(place, settings))
        self._read(model)
        self._statistics = BaseStatistics(self.work)
        for name, base in self.bases.items():
            base.take(self._partners[name], self._statistics, self._tokens)
        self._closing = self._read_closing(model, closing)

    def _read(self, model: nn.Module) -> None:
        """Read the text, and keep moments, or what types cost where they are not kept."""
        if self.work.facts(FISHER).get("passes", "0") != "0":
            return
        reading = BaseReading(model, self._tokens)
        if reading.how:
            self._progress.say(reading.how)
        if keeps_nothing(reading, self.work):
            matched = [MatchedBase(one, self._partners[name]) for name, one in self.bases.items()]
            rounding = self.config.rounding
            passes = LayerPasses(reading, matched, self.work, rounding, self._progress)
            if passes.serve:
                passes.estimate([self._tried(base, ()) for base in self.bases.values()])
                self._passes = passes
                return
        keep_statistics(reading, self.work, self._progress)

    def _tried(self, base: BaseFormat, unknown: Collection[str]) -> dict[str, list[str]]:
        """Return the types that are tried for every matrix; none where no budget decides."""
        if asked_types(base, self.config) is not None:
            return {}
        sets = self._candidates(base, unknown)
        return {
            name: list(dict.fromkeys(qtype for own in sets for qtype in own[name]))
            for name in base.matrices
        }

    def _candidates(self, base: BaseFormat, unknown: Collection[str]) -> list[dict[str, list[str]]]:
        """Return the types that each matrix may have, for each budget."""
        recipe = recipe_of(self.config)
        return [candidates_of(base, unknown, recipe, one) for one in budgets_of(self.config)]

    def _read_closing(self, model: nn.Module, text: HeldOutText) -> BaseClosing | None:
        """Let the original read held-out text; None where its logits cannot be had so."""
        try:
            return BaseClosing(model, text, self._progress)
        except UserError as error:
            self._progress.say(f"Files are not measured: {error.sentence}")
            return None

    def _settings(self, fingerprint: str) -> dict[str, Any]:
        """All that statistics and rounded matrices depend on."""
        return {
            "format": BASE_WORK_FORMAT,
            "model": self._name,
            "checkpoint": fingerprint,
            "calibration": hashlib.sha256(self._tokens.numpy().tobytes()).hexdigest(),
            "windows": {"calibration": len(self._tokens), "window": self._tokens.shape[1]},
            "rounding": ROUNDING_VERSION,
            "versions": {
                "bitquilt": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _say_alone(self) -> None:
        for partners in self._partners.values():
            alone = [name for name, partner in partners.items() if partner is None]
            if alone:
                self._progress.say(
                    f"{len(alone)} of {len(partners)} matrices of the converted file match no "
                    "parameter of the model, so their importance is unknown: "
                    f"{', '.join(alone[:3])}"
                )

    def results(self) -> Iterator[ConvertedResult]:
        """Yield a file for each format and budget."""
        files = []
        for place, (target, base) in enumerate(self.bases.items()):
            moments = BaseMoments(self._statistics, self._partners[target])
            files.append((base, moments, list(self._plans(place, base, moments))))
        require_room(self._output, sum(plan.nbytes for *_, plans in files for plan in plans))
        if self._passes is not None:
            known = [
                [
                    {n: qtype for n, qtype in plan.types.items() if moments.is_known(n)}
                    for plan in own
                ]
                for _, moments, own in files
            ]
            self._passes.round(known)
        for base, moments, plans in files:
            for plan in plans:
                yield self._write(base, moments, plan)

    def _plans(self, place: int, base: BaseFormat, moments: BaseMoments) -> Iterator[GgufPlan]:
        """Decide the types for every budget of a base, the first or a later one."""
        types = asked_types(base, self.config)
        if types is not None:
            yield planned_file(base, self.config, types, None, None)
            return
        unknown = [name for name in base.matrices if not moments.is_known(name)]
        union = self._tried(base, unknown)
        if self._passes is not None:
            known = self._passes.nats(place)
            nats = {
                name: dict.fromkeys(own, 0.0) | ({} if name in unknown else known[name])
                for name, own in union.items()
            }
        else:
            with self._progress.stage(f"Trying types of {base.target}", len(union), "costs"):
                nats = predicted_nats(base, moments, union, self.config.rounding, self._progress)
        sets = self._candidates(base, unknown)
        for own, budget in zip(sets, budgets_of(self.config), strict=True):
            types, predicted = best_allocation(base, nats, own, budget)
            yield planned_file(base, self.config, types, predicted, budget.bits)

    def _label(self, bits: float | None) -> str:
        return label_of(bits, self.config.size, self.config.recipe)

    def _place(self, base: BaseFormat, label: str) -> Path:
        return self._output / f"{self._name}-{label}{base.target.suffix}"

    def _write(self, base: BaseFormat, moments: BaseMoments, plan: GgufPlan) -> ConvertedResult:
        """Round and write one file."""
        started = time.monotonic()
        path = self._place(base, plan.label)
        work = base_rounding_work(base, plan.types)
        with self._progress.stage(f"Rounding for {path.name}", work, "rounding"):
            rounded = round_base(
                base, moments, plan.types, self.config.rounding, self.work, self._progress
            )
        weights = sum(matrix.weights for matrix in base.matrices.values())
        with self._progress.stage(f"Writing {path.name}", weights, "writing"):
            base.write(plan.types, rounded, path, self._progress)
        seconds = time.monotonic() - started
        result = ConvertedResult(paths=[path], source=base.path, plan=plan, seconds=seconds)
        try:
            return replace(result, **self._measured(base, path))
        except NotFiniteError:
            remove(path)
            raise

    def _measured(self, base: BaseFormat, path: Path) -> dict[str, Any]:
        """Measure a file in transformers and in its engine."""
        closing, progress, target = self._closing, self._progress, base.target
        if closing is None:
            return {}
        found = closing.read(self._partners[target.name], base.decoded(path), path.name, progress)
        fields = {"original": closing.original, "figures": closing.figures(found)}
        if not self.config.engine_check:
            return fields
        with progress.stage(f"Running {path.name} in {target.engine}", 1, "engine"):
            engine, note = closing.in_engine(path, target, found)
            progress.advance()
        progress.say(f"{path.name}: {note}")
        return {**fields, "engine": engine}
