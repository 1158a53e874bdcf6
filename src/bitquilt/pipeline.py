"""The whole story in one file: a checkpoint in, a model file of an exact size out.

Read :func:`quantize` first. A :class:`Run` holds what a command needs, and its methods are the
stages in their order: collect statistics, allocate, polish or correct, tune, export.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from bitquilt import __version__
from bitquilt.allocation import plan as planning
from bitquilt.allocation import recipe as recipes
from bitquilt.allocation.allocate import Decision, affordable_search, allocate
from bitquilt.allocation.plan import Plan, make_plans, requests, without_filling
from bitquilt.allocation.timing import token_seconds
from bitquilt.bases.vision import write_vision_beside
from bitquilt.calibration import corpus
from bitquilt.calibration.collect import collect_statistics, collection_work
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import calibration_documents, held_out_documents
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.config import AllocationConfig, QuantizeConfig, SearchConfig
from bitquilt.engines.weights import require_finite_weights
from bitquilt.errors import PartlyRefusedError, UserError
from bitquilt.forecast.estimate import Forecast, forecast_of
from bitquilt.forecast.time_limit import budget_of
from bitquilt.forecast.work import RunWork
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import ClosingTeacher, HeldOutFigures
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.qtypes.qtype import PackedSource
from bitquilt.report.result import Output, QuantizeResult, SearchResult
from bitquilt.report.run_record import OutputRecord, save
from bitquilt.rounding import ROUNDING_VERSION, rounders, sequential_pass
from bitquilt.rounding.given_cells import GivenCells
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.text_readers import ReaderProcesses, TextReaders
from bitquilt.rounding.tuning import distill
from bitquilt.run_text import RunText, draw_text
from bitquilt.runtime.device import computing, other_gpus
from bitquilt.runtime.files import refuse_file, require_room
from bitquilt.runtime.options import command
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir, refuse_unusable
from bitquilt.targets import parse_targets
from bitquilt.targets.engine_check import run_in_engine
from bitquilt.targets.export import export, write_recipe
from bitquilt.targets.same_tokens import refuse_other_tokens
from bitquilt.trimming.trimmed import trimmed_model

WORK_FORMAT = 7
"""Version of what a work directory holds; an older one is refused."""


def quantize(
    model: str | Path,
    config: QuantizeConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> QuantizeResult:
    """Make one model file per format and budget, of an exact size, and measure each.

    The same call on the same work directory continues where an earlier one was stopped.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        config: what is wanted.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Raises:
        UserError: bad input, no budget that can be met, a full disk: one sentence.
        PartlyRefusedError: some budgets or formats are impossible; it has the result of the others.
    """
    config = QuantizeConfig.of(config, options)
    if config.imatrix is not None:
        raise UserError("from Python, use --imatrix with `bitquilt.quantize_gguf`")
    asked, progress = command("quantize", str(model), config), progress or Progress()
    if config.trim is not None:
        with suppress(PartlyRefusedError):  # what is impossible is refused before the trimming
            planning.plan(model, config)
        model = trimmed_model(model, config.trim, Path(config.output), progress)
    with computing(config.device, config.threads), ReaderProcesses(other_gpus()) as processes:
        run = Run(model, config, progress, processes)
        made = _quantize(run, config, asked)
    if run.refused:
        raise PartlyRefusedError(run.refused, made)
    return made


def _quantize(run: Run, config: QuantizeConfig, asked: str) -> QuantizeResult:
    started = time.monotonic()
    paths = run.destinations()
    if config.engine_check:
        run.compare_tokens()
    names = (plan.target.vision_file(run.checkpoint.name) for plan in run.plans)
    name = next(filter(None, names), None)
    vision = write_vision_beside(run.checkpoint, name, run.output, run.progress.say)
    with run:
        bank = run.collect()
        decisions = run.allocate(bank)
        closing = run.read_held_out()
        original = run.original_figures(closing)
        outputs = []
        for plan, decision, path in zip(run.plans, decisions, paths, strict=True):
            source = run.polish(plan, decision, bank)
            if plan.sequential:
                source = run.correct(plan, decision, bank)
            if config.tune:
                source = run.tune(plan, decision, source)
            outputs.append(run.export(plan, decision, source, closing, path))
            run.record(outputs[-1], plan, decision, original, asked)
        if run.forgets:
            bank.forget_matrices()
    return QuantizeResult(
        model=run.checkpoint.name,
        stored_as=run.checkpoint.stored_as,
        original=original,
        outputs=outputs,
        vision=vision,
        seconds=time.monotonic() - started,
        work_dir=run.work.path,
        seconds_in_all=run.work.seconds,
    )


def search(
    model: str | Path,
    config: AllocationConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[SearchResult]:
    """Decide allocations as :func:`quantize` does, and write recipes instead of models.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        config: what is wanted.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.AllocationConfig`, instead of a config.

    Returns:
        one recipe per format and budget.

    Raises:
        UserError: bad input, no budget that can be met, a full disk: one sentence.
        PartlyRefusedError: some budgets or formats are impossible; it has the result of the others.
    """
    config = AllocationConfig.of(config, options)
    config.require_budget(model)
    with computing(config.device, config.threads), ReaderProcesses(other_gpus()) as processes:
        run = Run(model, config, progress or Progress(), processes)
        made = _search(run)
    if run.refused:
        raise PartlyRefusedError(run.refused, made)
    return made


def _search(run: Run) -> list[SearchResult]:
    require_room(run.output, 0)
    with run:
        decisions = run.allocate(run.collect())
    return [
        run.write_recipe(plan, decision)
        for plan, decision in zip(run.plans, decisions, strict=True)
    ]


class Source(NamedTuple):
    """What a file is written from."""

    checkpoint: Checkpoint
    """Gives all that is not a matrix; its norms may be tuned ones."""
    packed: PackedSource


class Run(AbstractContextManager["Run"]):
    """One command on one model: what it needs, and its stages."""

    checkpoint: Checkpoint
    config: AllocationConfig
    search: SearchConfig
    """How to search, with the tokens that this machine has time for."""
    plans: list[Plan]
    refused: str
    """Which files cannot be made, and why; empty if all can."""
    budget: TextBudget
    text: RunText
    work: WorkDir
    """Open inside the ``with`` block."""
    original: OriginalModel
    """The full-precision model on the texts that it was asked to read."""
    progress: Progress
    forecast: Forecast
    """What it will take; its lines are said when the work directory is open."""
    rounder: rounders.Rounder
    """Fills the layer bank."""

    def __init__(
        self,
        model: str | Path,
        config: AllocationConfig,
        progress: Progress,
        processes: ReaderProcesses | None = None,
    ) -> None:
        """Read what a run needs. Everything that can be refused before the work is refused here.

        ``processes`` are those of other GPUs, which read the text too.

        Raises:
            UserError: the model, the budget, the recipe or the text does not serve.
        """
        asked = requests(config)
        self.config, self.progress = config, progress
        self._processes = processes or ReaderProcesses([])
        self.output = Path(config.output)
        refuse_file(self.output, "--output")
        self._model = str(model)
        self.checkpoint = open_checkpoint(self._model)
        self._work_dir = config.work_directory(self.checkpoint.name)
        refuse_unusable(self._work_dir)
        self.checkpoint.load("model.norm.weight")  # a config without weights is refused now
        if self.checkpoint.gguf_source is not None:
            require_finite_weights(self.checkpoint.gguf_source)
        targets = parse_targets(config.to)
        self.plans, self.refused = make_plans(self.checkpoint, asked, targets)
        if self.refused:
            progress.say(f"{self.refused}. The others will be made")
        for note in dict.fromkeys(note for plan in self.plans for note in plan.notes):
            progress.say(note)
        self._given = GivenCells.read([Path(file) for file in config.cells], self.checkpoint)
        for note in self._given.left_out:
            progress.say(note)
        self.budget = budget_of(self.checkpoint, self.plans, config)
        asked_for = config.search
        self.search = affordable_search(asked_for, self.budget) if self._searches else asked_for
        documents, repeated = calibration_documents(config.calibration, config.held_out)
        for name in repeated:
            progress.say(f"Calibration document {name} repeats held-out text and is left out")
        searching = self.search if self._searches else None
        place = self.checkpoint.tokenizer_dir
        # held, so that it is loaded once for the text and for the comparison of tokens
        self._tokenizer = None if place is None else load_tokenizer(place)
        self.text = draw_text(
            self.checkpoint, documents, config, searching, self.budget, progress.say
        )
        self._settings = self._settings_of(documents)
        self._run_work = RunWork(
            checkpoint=self.checkpoint,
            plans=self.plans,
            config=config,
            budget=self.budget,
            search=self.search,
            closing=len(self.text.closing.tokens),
        )
        self.forecast = forecast_of(self._run_work)
        self.forecast.disk.require_room()

    def __enter__(self) -> Self:
        """Open the work directory, and begin the job whose stages follow."""
        self._tokenizer = None
        with ExitStack() as stack:
            stack.enter_context(self.progress.job(self.forecast.stages, self.forecast.before))
            self.work = stack.enter_context(WorkDir(self._work_dir, self._settings))
            for line in self.forecast.lines:
                self.progress.say(line)
            self.original = OriginalModel(self.checkpoint, self.work)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the work directory."""
        self._open.close()

    def destinations(self) -> list[Path]:
        """Where the files go.

        Raises:
            UserError: something else is in a file's place, or the disk has no room.
        """
        require_room(self.output, sum(plan.layout.total_bytes for plan in self.plans))
        paths = []
        for plan in self.plans:
            path = self.output / f"{self.checkpoint.name}-{plan.label}{plan.target.suffix}"
            plan.target.refuse_overwrite(path, self.checkpoint)
            paths.append(path)
        return paths

    def compare_tokens(self) -> None:
        """Refuse a model of which an engine would read other tokens than it is calibrated with.

        Raises:
            UserError: naming the text that differs.
        """
        targets = dict.fromkeys(plan.target for plan in self.plans)
        for note in refuse_other_tokens(self.checkpoint, list(targets)):
            self.progress.say(note)

    def collect(self) -> LayerBank:
        """Collect what the calibration text says of every matrix, and open the layer bank.

        Where it is read in two passes, the first comes with the estimates of what types cost.
        """
        tokens, folds = self.text.calibration, self.text.folds
        bank = LayerBank(self.checkpoint, self.work, self.config.rounding, self._given)
        if self._run_work.two_passes:
            every, says = self._run_work.everything, self.progress
            readers = TextReaders(self._model, bank, self._processes, says)
            self.rounder = rounders.TwoPassRounder(bank, tokens, folds, every, readers, says)
            return bank
        if self._run_work.estimates:
            self.rounder = rounders.EstimatingRounder(bank, self.progress)
        else:
            self.rounder = rounders.BankRounder(bank, self.progress, settles=self.forgets)
        work = collection_work(self.checkpoint, len(tokens))
        with self.progress.stage("Reading calibration text", work, "calibration"):
            collect_statistics(
                BlockwiseModel(self.checkpoint), tokens, folds, self.work, self.progress
            )
        return bank

    def allocate(self, bank: LayerBank) -> list[Decision]:
        """Decide the allocation of every planned file."""
        decisions = allocate(
            self.plans,
            bank,
            self.rounder,
            self.original,
            self.text.allocation,
            self.search,
            self.progress,
        )
        limited = self.search.tokens_per_second is not None
        self.plans = [
            without_filling(plan, self.checkpoint, decision.allocation, limited, self.progress)
            for plan, decision in zip(self.plans, decisions, strict=True)
        ]
        return decisions

    def read_held_out(self) -> ClosingTeacher:
        """Run the original over the text of the closing figures."""
        text = self.text.closing
        work = text.tokens.numel() * self.checkpoint.block_weights
        with self.progress.stage("Reading held-out text", work, "closing text"):
            teacher = self.original.on(text.tokens, text.owners, self.progress.advance)
        return ClosingTeacher(teacher, text.unlike)

    def original_figures(self, closing: ClosingTeacher) -> HeldOutFigures:
        """Measure the original on the text of the closing figures."""
        with self.progress.stage("Measuring the original", 1, "original"):
            found = closing.original_figures()
            self.progress.advance()
        return found

    def polish(self, plan: Plan, decision: Decision, bank: LayerBank) -> Source:
        """Bring the matrices that were chosen to the rounding that was asked for."""
        rounders.polish_mix(bank, decision.allocation, str(plan.target), self.progress)
        return Source(bank.checkpoint, bank.polished)

    def correct(self, plan: Plan, decision: Decision, bank: LayerBank) -> Source:
        """Round every block again for what the quantized blocks before it give it."""
        layers = self.checkpoint.layers
        with self.progress.stage(f"Correcting for {plan.target}", layers, "sequential"):
            corrected = sequential_pass.round_sequentially(
                bank,
                decision.allocation,
                self.text.calibration,
                self.config.rounding,
                self.progress,
            )
        return Source(bank.checkpoint, corrected.packed)

    def tune(self, plan: Plan, decision: Decision, source: Source) -> Source:
        """Learn scales and norms by gradient descent, the codes as they are."""
        tokens = self.text.tuning
        assert tokens is not None
        steps = distill.DEFAULT_SCHEDULE.steps(len(tokens))
        with self.progress.stage(f"Tuning for {plan.target}", steps, "tuning"):
            tuned = distill.tune(
                source.checkpoint,
                decision.allocation,
                source.packed,
                self.original.on(tokens),
                self.work,
                self.progress,
            )
        return Source(tuned.checkpoint, tuned.packed)

    def export(
        self, plan: Plan, decision: Decision, source: Source, closing: ClosingTeacher, path: Path
    ) -> Output:
        """Write one file, measured in torch and in its own engine."""
        asked = isinstance(self.config, QuantizeConfig) and self.config.engine_check
        checkpoint, target, allocation = source.checkpoint, plan.target, decision.allocation
        exported = export(
            target,
            checkpoint,
            allocation,
            source.packed,
            path,
            recipe_json=recipes.from_allocation(allocation, checkpoint, plan.sequential).to_json(),
            total_bytes=plan.layout.total_bytes,
            closing=closing,
            engine_check=run_in_engine if asked else None,
            progress=self.progress,
        )
        layout = plan.layout_of(checkpoint, allocation)
        return Output(
            target=target.name,
            path=path,
            nbytes=layout.total_bytes,
            bits=layout.bits,
            bits_on_disk=layout.bits_on_disk,
            allocation=dict(allocation),
            source=decision.source,
            rankings=decision.rankings,
            figures=exported.figures,
            engine=exported.engine,
            note=exported.note,
        )

    def record(
        self, output: Output, plan: Plan, decision: Decision, original: HeldOutFigures, asked: str
    ) -> None:
        """Keep what was made for the report; where a speed was asked for, measure it."""
        if self.search.tokens_per_second is not None:
            rate = 1 / token_seconds(output.path)
            self.progress.say(f"{output.path}: {rate:.4g} tokens a second measured")
        made = OutputRecord.of(
            output,
            model=self.checkpoint.name,
            fingerprint=self.checkpoint.fingerprint,
            original=original,
            text=corpus.fingerprint(held_out_documents(self.config.held_out)),
            breakdown=plan.layout_of(self.checkpoint, decision.allocation).breakdown,
            command=asked,
        )
        save(self.work, made)

    def write_recipe(self, plan: Plan, decision: Decision) -> SearchResult:
        """Write the allocation of a planned file as a recipe."""
        name = f"{self.checkpoint.name}-{plan.label}-{plan.target}.recipe.json"
        path = self.output / name
        said = plan.sequential or None  # a search that was told nothing leaves it open
        recipe = recipes.from_allocation(decision.allocation, self.checkpoint, said)
        write_recipe(path, recipe.to_json())
        layout = plan.layout_of(self.checkpoint, decision.allocation)
        return SearchResult(
            target=plan.target.name,
            path=path,
            nbytes=layout.total_bytes,
            bits=layout.bits,
            bits_on_disk=layout.bits_on_disk,
            source=decision.source,
            rankings=decision.rankings,
            work_dir=self.work.path,
        )

    @property
    def forgets(self) -> bool:
        """Whether rounded matrices go as soon as no file needs them."""
        return self._run_work.forgets

    @property
    def _searches(self) -> bool:
        """Whether any file has a mix to be found; recipes and presets alone say all of theirs."""
        return any(plan.space is not None for plan in self.plans)

    def _settings_of(self, documents: Sequence[Document]) -> dict[str, Any]:
        """All that statistics and bank depend on."""
        cut = self.checkpoint.trimmed
        return {
            "format": WORK_FORMAT,
            "model": self.checkpoint.name,
            "checkpoint": self.checkpoint.fingerprint,
            "calibration": corpus.fingerprint(documents),
            "windows": self.budget.of_statistics(),
            "rounding": [self.config.rounding, ROUNDING_VERSION],
            "versions": {"bitquilt": __version__, "torch": torch.__version__},
            **({"vocabulary": str(cut)} if cut is not None else {}),
            **({"cells": dict(self._given.fingerprint)} if self.config.cells else {}),
        }
