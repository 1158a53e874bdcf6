"""The whole story on one page: a checkpoint in, a model file of an exact size out."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitquilt import __version__
from bitquilt.allocation import recipe as recipes
from bitquilt.allocation.allocate import Decision, Search, Text, decide
from bitquilt.allocation.plan import Plan, Request, make_plan
from bitquilt.allocation.timing import token_seconds
from bitquilt.calibration import corpus
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import calibration_documents, encoder, token_windows
from bitquilt.calibration.text_budget import LEAST_RACED, WINDOW, TextBudget, text_budget
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher, original_figures, summarize, weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import PackedSource
from bitquilt.report.result import Output, RecipeResult, Result
from bitquilt.report.run_record import OutputRecord, save
from bitquilt.rounding import METHODS, ROUNDING_VERSION, sequential_pass
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import polish_layers
from bitquilt.rounding.tuning import distill
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.files import atomic_write, remove_on_error, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF, parse_targets
from bitquilt.targets.engine_check import run_in_engine


class Asked(NamedTuple):
    """What a command asks for, understood and possible."""

    checkpoint: Checkpoint
    plans: list[Plan]
    documents: list[Document]
    """Calibration text."""
    much: TextBudget
    rounding: str


def quantize(
    model: str,
    *,
    bits: float | Sequence[float] | None = None,
    size: str | None = None,
    recipe: str | Path | None = None,
    to: str = "gguf",
    output: str | Path = ".",
    calibration: str | Path | None = None,
    work_dir: str | Path | None = None,
    rounding: str = "full",
    refine: bool = False,
    tune: bool = False,
    how: Search | None = None,
    progress: Progress | None = None,
) -> Result:
    """Make one model file per target and budget, of an exact size, and measure it.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        bits: bits per weight over all weights, everything in the file counted; several make as
            many files, from one search.
        size: or the file's size, like ``600MB``.
        recipe: a recipe file or a preset; with a budget, a recipe file's pins hold.
        to: ``gguf``, ``mlx`` or ``both``.
        output: directory for the files.
        calibration: text instead of the bundled one (.txt or .jsonl).
        work_dir: where stages keep what they made; beside the output if not given. The same call
            on the same directory continues where it was stopped.
        rounding: ``nearest``, ``gptq`` (with error feedback) or ``full`` (polished too).
        refine: correct the decided mix block by block for the rounding of the blocks before.
        tune: learn its scales and norms by gradient descent; takes a GPU or patience.
        how: how to search for the mix.
        progress: where progress goes.

    Raises:
        UserError: bad input, a budget that cannot be met, a full disk: one sentence.
    """
    started = time.monotonic()
    how, progress = how or Search(), progress or Progress()
    requests = Request.parse_all(bits, size, recipe, how.tokens_per_second is not None)
    asked = _asked(model, requests, to, calibration, rounding, progress)
    checkpoint, plans, documents, much, _ = asked
    require_room(Path(output), sum(made.layout.total_bytes for made in plans))
    paths = [_destination(Path(output), checkpoint, made) for made in plans]
    encode = encoder(checkpoint)
    with _work(asked, work_dir, output) as work:
        original = OriginalModel(checkpoint, work)
        bank, decisions, held_out = _decided(asked, how, original, progress)
        with progress.stage("Reading held-out text", 1):
            teacher = original.on(held_out)
            figures = original_figures(teacher)
            progress.advance()
        if how.tokens_per_second is not None:
            plans = _unpadded(plans, decisions, checkpoint)
        outputs = []
        for made, decision, path in zip(plans, decisions, paths, strict=True):
            patches = _polished(made, decision.mix, bank, progress)
            if refine:
                text = token_windows(documents, encode, much.refining, WINDOW)
                patches = _refined(made, decision.mix, bank, text, rounding, progress)
            if tune:
                text = token_windows(documents, encode, much.tuning, WINDOW)
                patches = _tuned(made, decision.mix, patches, text, original, progress)
            outputs.append(_stitch(made, decision, patches, teacher, path, progress))
            if how.tokens_per_second is not None:
                rate = 1 / token_seconds(path)
                progress.say(f"{path}: {rate:.4g} tokens a second measured")
            layout = made.target.plan(checkpoint, decision.mix)
            record = OutputRecord.of(
                outputs[-1],
                model=checkpoint.name,
                breakdown=layout.filled(made.layout.total_bytes).breakdown,
                command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            )
            save(work, record)
    return Result(checkpoint.name, figures, outputs, time.monotonic() - started)


def search(
    model: str,
    *,
    bits: float | Sequence[float] | None = None,
    size: str | None = None,
    recipe: str | Path | None = None,
    to: str = "gguf",
    output: str | Path = ".",
    calibration: str | Path | None = None,
    work_dir: str | Path | None = None,
    rounding: str = "full",
    how: Search | None = None,
    progress: Progress | None = None,
) -> list[RecipeResult]:
    """Decide mixes as :func:`quantize` does, and write recipes instead of models.

    Arguments are those of :func:`quantize`.

    Returns:
        one recipe per target and budget.

    Raises:
        UserError: bad input, a budget that cannot be met, a full disk: one sentence.
    """
    how, progress = how or Search(), progress or Progress()
    requests = Request.parse_all(bits, size, recipe, how.tokens_per_second is not None)
    asked = _asked(model, requests, to, calibration, rounding, progress)
    require_room(Path(output), 0)
    with _work(asked, work_dir, output) as work:
        original = OriginalModel(asked.checkpoint, work)
        _, decisions, _ = _decided(asked, how, original, progress)
    plans = asked.plans
    if how.tokens_per_second is not None:
        plans = _unpadded(plans, decisions, asked.checkpoint)
    found = []
    for made, (mix, name, verdicts) in zip(plans, decisions, strict=True):
        path = Path(output) / f"{asked.checkpoint.name}-{made.label}-{made.target}.recipe.json"
        _write_recipe(path, recipes.from_allocation(mix, asked.checkpoint).to_json())
        nbytes = made.layout.total_bytes
        found.append(RecipeResult(made.target.name, path, nbytes, made.bits, name, verdicts))
    return found


def _asked(
    model: str,
    requests: Sequence[Request],
    to: str,
    calibration: str | Path | None,
    rounding: str,
    progress: Progress,
) -> Asked:
    """Understand a command, and say what of it has no effect."""
    if rounding not in METHODS:
        raise UserError(f"there is no rounding {rounding!r}; choose one of {', '.join(METHODS)}")
    checkpoint = open_checkpoint(model)
    checkpoint.load("model.norm.weight")  # a config without weights is refused now, not later
    plans = [
        make_plan(checkpoint, asked, target) for asked in requests for target in parse_targets(to)
    ]
    for note in plans[0].notes:
        progress.say(note)
    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    much = text_budget(weights, on_gpu=compute_device().type != "cpu")
    documents, dropped = calibration_documents(Path(calibration) if calibration else None)
    for source in dropped:
        progress.say(f"calibration document {source} repeats held-out text and is left out")
    return Asked(checkpoint, plans, documents, much, rounding)


def _work(asked: Asked, work_dir: str | Path | None, output: str | Path) -> WorkDir:
    """The work directory of a command."""
    directory = Path(work_dir) if work_dir else Path(output) / f"{asked.checkpoint.name}.work"
    calibration = corpus.fingerprint(asked.documents)
    return WorkDir(directory, _settings(asked.checkpoint, calibration, asked.much, asked.rounding))


def _decided(
    asked: Asked, how: Search, original: OriginalModel, progress: Progress
) -> tuple[LayerBank, list[Decision], Tensor]:
    """Statistics, bank, and the mix of every file; and the windows of the closing figures."""
    checkpoint, plans, documents, much, rounding = asked
    encode = encoder(checkpoint)
    tokens = token_windows(documents, encode, much.calibration, WINDOW)
    held_out = token_windows(
        corpus.bundled("held-out"), encode, much.held_out + much.judging, WINDOW
    )
    with progress.stage("Reading calibration text", 2 * checkpoint.layers + 1):
        collect_statistics(
            BlockwiseModel(checkpoint), tokens, much.gradients, original.work, progress
        )
    bank = LayerBank(checkpoint, original.work, rounding)
    closing, judging = held_out.split([much.held_out, much.judging])
    try:
        read = token_windows(documents, encode, how.windows(much.search), WINDOW)
    except UserError:
        progress.say("little calibration text: the search reads what the rounding read")
        read = tokens
    company = much.company if how.method == "race" else 0
    text = Text(original, read[:company], read, judging)
    if how.method == "race" and how.tokens is None and not much.races:
        progress.say(
            "the mix is the exact knapsack's: on this machine a race would take long; "
            f"--search-tokens {LEAST_RACED * WINDOW} or more runs it"
        )
        how = replace(how, method="knapsack")
    how = how.limited(much.races * WINDOW)
    return bank, decide(plans, bank, text, how, progress), closing


def _unpadded(
    plans: Sequence[Plan], decisions: Sequence[Decision], checkpoint: Checkpoint
) -> list[Plan]:
    """The plans as small as their mixes: a limit of speed may leave much of the bytes unused."""
    return [
        replace(made, layout=made.target.plan(checkpoint, decision.mix))
        for made, decision in zip(plans, decisions, strict=True)
    ]


def _destination(directory: Path, checkpoint: Checkpoint, made: Plan) -> Path:
    """Where a file goes; refused now if something else is in its place."""
    path = directory / f"{checkpoint.name}-{made.label}{made.target.suffix}"
    made.target.refuse_overwrite(path, checkpoint)
    return path


def _settings(
    checkpoint: Checkpoint, calibration: str, much: TextBudget, rounding: str
) -> dict[str, Any]:
    """All that statistics and bank depend on."""
    return {
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "calibration": calibration,
        "windows": [
            *(much.calibration, much.gradients, much.company),
            *(much.held_out, much.judging, WINDOW),
        ],
        "rounding": [rounding, ROUNDING_VERSION],
        "versions": {"bitquilt": __version__, "torch": torch.__version__},
    }


class Patches(NamedTuple):
    """What a file is stitched from."""

    checkpoint: Checkpoint
    """For all that is no matrix; its norms may be tuned ones."""
    packed: PackedSource


def _polished(made: Plan, mix: Mapping[str, str], bank: LayerBank, progress: Progress) -> Patches:
    """The mix rounded as well as was asked for."""
    with progress.stage(f"Polishing for {made.target}", len(mix)):
        polish_layers(bank, {module: [qtype] for module, qtype in mix.items()}, progress)
    return Patches(bank.checkpoint, bank.polished)


def _refined(
    made: Plan,
    mix: Mapping[str, str],
    bank: LayerBank,
    tokens: Tensor,
    rounding: str,
    progress: Progress,
) -> Patches:
    """The mix corrected block by block, which rounds every matrix of a block again."""
    with progress.stage(f"Refining for {made.target}", bank.checkpoint.layers):
        refined = sequential_pass.round_sequentially(bank, mix, tokens, rounding, progress)
    return Patches(bank.checkpoint, refined.packed)


def _tuned(
    made: Plan,
    mix: Mapping[str, str],
    patches: Patches,
    tokens: Tensor,
    original: OriginalModel,
    progress: Progress,
) -> Patches:
    """The mix with scales and norms as learned."""
    with progress.stage(f"Tuning for {made.target}", distill.steps(len(tokens))):
        lessons = original.on(tokens)
        tuned = distill.tune(
            patches.checkpoint, mix, patches.packed, lessons, original.work, progress
        )
    return Patches(tuned.checkpoint, tuned.packed)


def _stitch(
    made: Plan,
    decision: Decision,
    patches: Patches,
    teacher: Teacher,
    path: Path,
    progress: Progress,
) -> Output:
    """Write one file, read it back, and measure it in torch and in its own engine."""
    checkpoint, target, mix = patches.checkpoint, made.target, decision.mix
    recipe_json = recipes.from_allocation(mix, checkpoint).to_json()
    with progress.stage(f"Writing {path}", 1):
        padding = made.layout.total_bytes - target.plan(checkpoint, mix).total_bytes
        target.write(checkpoint, mix, patches.packed, path, recipe_json, padding)
        if target is GGUF:  # an MLX directory has it inside
            _write_recipe(path.with_suffix(".recipe.json"), recipe_json)
        progress.advance()
    with progress.stage(f"Checking {path}", 3), remove_on_error(path):
        target.check(path, checkpoint, mix, patches.packed)
        progress.advance()
        read_back = target.read_weights(path)
        found = weights_metrics(teacher, checkpoint, read_back.__getitem__)
        progress.advance()
        engine, note = run_in_engine(path, target, checkpoint, teacher, found)
        progress.advance()
    in_torch = summarize(found, "torch")
    nbytes = made.layout.total_bytes
    return Output(
        target.name,
        path,
        nbytes,
        made.bits,
        dict(mix),
        decision.name,
        decision.verdicts,
        in_torch,
        engine,
        note,
    )


def _write_recipe(path: Path, recipe_json: str) -> None:
    """A recipe for people to read."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(json.loads(recipe_json), indent=2) + "\n", "utf-8")
