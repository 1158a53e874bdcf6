"""The whole story on one page: a checkpoint in, a model file of an exact size out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitquilt import __version__, refining
from bitquilt import recipe as recipes
from bitquilt.bank import Bank
from bitquilt.calibration import corpus
from bitquilt.calibration.capture import capture
from bitquilt.calibration.moments import Moments
from bitquilt.calibration.text import calibration_documents, encoder, token_windows
from bitquilt.checkpoint import open_checkpoint
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.effort import WINDOW, Effort, effort
from bitquilt.errors import UserError
from bitquilt.evaluation import written
from bitquilt.evaluation.in_engine import run_in_engine
from bitquilt.evaluation.written import Teacher
from bitquilt.files import removed_on_error, require_room, written_whole
from bitquilt.forward import BlockwiseModel
from bitquilt.grids.grid import PackedSource
from bitquilt.planning import STITCHERS, Plan, Request, make_plan, targets
from bitquilt.progress import Reporter
from bitquilt.result import Output, Result
from bitquilt.rounding import METHODS, REVISION
from bitquilt.search import scores
from bitquilt.search.knapsack import Table
from bitquilt.stitch import mlx
from bitquilt.stitch.destination import check_directory, check_file
from bitquilt.tuning import distill
from bitquilt.workdir import WorkDir

SUFFIX = {"gguf": ".gguf", "mlx": "-mlx"}


def quantize(
    model: str,
    *,
    bits: float | None = None,
    size: str | None = None,
    recipe: str | Path | None = None,
    to: str = "gguf",
    output: str | Path = ".",
    calibration: str | Path | None = None,
    work_dir: str | Path | None = None,
    rounding: str = "best",
    refine: bool = False,
    tune: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Make one model file per target, of an exact size, and measure it.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        bits: bits per weight over all weights, everything in the file counted.
        size: or the file's size, like ``600MB``.
        recipe: a recipe file or a preset; with a budget, a recipe file's pins hold.
        to: ``gguf``, ``mlx`` or ``both``.
        output: directory for the files.
        calibration: text instead of the bundled one (.txt or .jsonl).
        work_dir: where stages keep what they made; beside the output if not given. The same call
            on the same directory continues where it was stopped.
        rounding: ``nearest``, ``gptq`` (with error feedback) or ``best`` (with all there is).
        refine: correct the decided mix block by block for the rounding of the blocks before.
        tune: learn its scales and norms by gradient descent; takes a GPU or patience.
        reporter: where progress goes.

    Raises:
        UserError: bad input, a budget that cannot be met, a full disk: one sentence.
    """
    started = time.monotonic()
    reporter = reporter or Reporter()
    if rounding not in METHODS:
        raise UserError(f"there is no rounding {rounding!r}; choose one of {', '.join(METHODS)}")
    checkpoint = open_checkpoint(model)
    checkpoint.load("model.norm.weight")  # a config without weights is refused now, not later
    request = Request.parse(bits, size, recipe)
    plans = [make_plan(checkpoint, request, target) for target in targets(to)]
    for note in plans[0].notes:
        reporter.say(note)
    require_room(Path(output), sum(made.layout.total_bytes for made in plans))
    paths = [_destination(Path(output), checkpoint, request.label, p.target) for p in plans]

    much = effort(sum(rows * columns for rows, columns in checkpoint.matrices.values()))
    documents, dropped = calibration_documents(Path(calibration) if calibration else None)
    for source in dropped:
        reporter.say(f"calibration document {source} repeats held-out text and is left out")
    directory = Path(work_dir) if work_dir else Path(output) / f"{checkpoint.name}.work"
    settings = _settings(checkpoint, corpus.fingerprint(documents), much, rounding)
    with WorkDir(directory, settings) as work:
        encode = encoder(checkpoint)
        tokens = token_windows(documents, encode, much.calibration, WINDOW)
        held_out = token_windows(corpus.bundled("held-out"), encode, much.held_out, WINDOW)
        with reporter.stage("Reading calibration text", 2 * checkpoint.layers + 1) as step:
            capture(BlockwiseModel(checkpoint), tokens, much.gradients, work, step)
        bank = Bank(checkpoint, work, rounding, reporter.say)
        searched = any(made.space for made in plans)
        factors = _factors(bank.moments, tokens[: much.probes], reporter) if searched else {}
        mixes = [_decide(made, bank, factors, reporter) for made in plans]
        with reporter.stage("Reading held-out text", 1) as step:
            teacher = Teacher.of(checkpoint, held_out, work, "held-out")
            original = written.original(teacher)
            step()
        outputs = []
        for made, mix, path in zip(plans, mixes, paths, strict=True):
            if refine:
                text = token_windows(documents, encode, much.refining, WINDOW)
                patches = _refined(made, mix, bank, text, rounding, reporter)
            else:
                patches = _finished(made, mix, bank, reporter)
            if tune:
                text = token_windows(documents, encode, much.tuning, WINDOW)
                patches = _tuned(made, mix, patches, text, work, reporter)
            outputs.append(_stitch(made, mix, patches, teacher, path, reporter))
    return Result(checkpoint.name, original, outputs, time.monotonic() - started)


def _destination(directory: Path, checkpoint: Checkpoint, label: str, target: str) -> Path:
    """Where a file goes; refused now if something else is in its place."""
    path = directory / f"{checkpoint.name}-{label}{SUFFIX[target]}"
    if target == "gguf":
        check_file(path, checkpoint.gguf_source)
    else:
        check_directory(path, marker=mlx.RECIPE_FILE)
    return path


def _settings(
    checkpoint: Checkpoint, calibration: str, much: Effort, rounding: str
) -> dict[str, Any]:
    """All that statistics and bank depend on."""
    return {
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "calibration": calibration,
        "windows": [much.calibration, much.gradients, much.probes, much.held_out, WINDOW],
        "rounding": [rounding, REVISION],
        "versions": {"bitquilt": __version__, "torch": torch.__version__},
    }


def _factors(moments: Moments, tokens: torch.Tensor, reporter: Reporter) -> dict[str, float]:
    """Kind of matrix → what its predictions are multiplied by; measured once and kept."""
    work = moments.work
    known = work.load_json("probes")
    if known is None:
        total = len(scores.kinds(moments.checkpoint)) + 1
        with reporter.stage("Measuring each kind of matrix", total) as step:
            teacher = Teacher.of(moments.checkpoint, tokens, work, "probes")
            step()
            known = [asdict(probe) for probe in scores.measure(moments, teacher, step)]
        work.save_json("probes", known)
    return {probe["kind"]: scores.Probe(**probe).factor for probe in known}


def _decide(
    made: Plan, bank: Bank, factors: Mapping[str, float], reporter: Reporter
) -> Mapping[str, str]:
    """Round the candidates and choose among them: module path → grid name."""
    candidates = {module: [grid] for module, grid in made.assignment.items()}
    if made.space:
        candidates = made.space.candidates
    with reporter.stage(f"Rounding for {made.target}", sum(map(len, candidates.values()))) as step:
        bank.build(candidates, step)
    if made.space is None:
        return made.assignment
    table = Table(scores.scored(bank, made.space.menu, factors), made.space.capacity)
    return table.solve(made.space.capacity)


class Patches(NamedTuple):
    """What a file is stitched from."""

    checkpoint: Checkpoint
    """For all that is no matrix; its norms may be tuned ones."""
    packed: PackedSource


def _finished(made: Plan, mix: Mapping[str, str], bank: Bank, reporter: Reporter) -> Patches:
    """The mix rounded as well as was asked for."""
    with reporter.stage(f"Finishing for {made.target}", len(mix)) as step:
        bank.finish({module: [grid] for module, grid in mix.items()}, step)
    return Patches(bank.checkpoint, bank.packed)


def _refined(
    made: Plan,
    mix: Mapping[str, str],
    bank: Bank,
    tokens: torch.Tensor,
    rounding: str,
    reporter: Reporter,
) -> Patches:
    """The mix corrected block by block, which rounds every matrix of a block again."""
    with reporter.stage(f"Refining for {made.target}", bank.checkpoint.layers) as step:
        refined = refining.refine(bank, mix, tokens, rounding, reporter.say, step)
    return Patches(bank.checkpoint, refined.packed)


def _tuned(
    made: Plan,
    mix: Mapping[str, str],
    patches: Patches,
    tokens: torch.Tensor,
    work: WorkDir,
    reporter: Reporter,
) -> Patches:
    """The mix with scales and norms as learned."""
    with reporter.stage(f"Tuning for {made.target}", distill.steps(len(tokens))) as step:
        lessons = Teacher.of(patches.checkpoint, tokens, work, "tuning")
        tuned = distill.tune(
            patches.checkpoint, mix, patches.packed, lessons, work, reporter.say, step
        )
    return Patches(tuned.checkpoint, tuned.packed)


def _stitch(
    made: Plan,
    mix: Mapping[str, str],
    patches: Patches,
    teacher: Teacher,
    path: Path,
    reporter: Reporter,
) -> Output:
    """Write one file, read it back, and measure it in torch and in its own engine."""
    checkpoint, stitcher = patches.checkpoint, STITCHERS[made.target]
    recipe_json = recipes.from_assignment(mix, checkpoint).to_json()
    with reporter.stage(f"Writing {path}", 1) as step:
        spare = made.layout.total_bytes - stitcher.plan(checkpoint, mix).total_bytes
        stitcher.write(checkpoint, mix, patches.packed, path, recipe_json, spare)
        _write_recipe(path, recipe_json)
        step()
    with reporter.stage(f"Checking {path}", 3) as step, removed_on_error(path):
        stitcher.check(path, checkpoint, mix, patches.packed)
        step()
        read_back = stitcher.read_weights(path)
        found = written.measure(teacher, checkpoint, read_back.__getitem__)
        step()
        engine, note = run_in_engine(path, made.target, checkpoint, teacher, found)
        step()
    in_torch = written.figures(found, "torch")
    nbytes = made.layout.total_bytes
    return Output(made.target, path, nbytes, made.bits, dict(mix), in_torch, engine, note)


def _write_recipe(path: Path, recipe_json: str) -> None:
    """Put the recipe beside a GGUF file, for people; an MLX directory has it inside."""
    if path.suffix == ".gguf":
        with written_whole(path.with_suffix(".recipe.json")) as beside:
            beside.write_text(json.dumps(json.loads(recipe_json), indent=2) + "\n", "utf-8")
