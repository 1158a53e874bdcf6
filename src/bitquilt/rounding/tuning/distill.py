"""Distillation: gradient descent on KL(original ‖ mix) over scales and norms, on calibration text.

Some windows, of domains that the calibration text has none of, are set apart: what was best on them
is kept, and the mix as it was rounded if nothing was better. Held-out text plays no part, so the
closing figures stay honest. mlx-lm's DWQ does the same for MLX's scales and biases.

Letters: N windows, L tokens in a window, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.metrics.kl_loss import kl_loss, reproducible_gradients
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.blockwise import BlockwiseModel, batches
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Packed, PackedSource
from bitquilt.rounding.tuning.student import Student
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir, under


@dataclass(frozen=True, kw_only=True)
class TuningSchedule:
    """How long and how fast scales and norms are tuned."""

    rate: float = 8e-3
    """Adam's highest learning rate per root of the KL at the start: errors, and what changes may
    cost, go with that root. Changes are relative (:mod:`bitquilt.rounding.tuning.learned`)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the two moments."""
    warm_up: int = 10
    """Steps over which the rate rises."""
    batch: int = 8
    """Windows in a step."""
    validation: int = 32
    """Windows set apart, or a quarter of them all where that is less."""
    checks: int = 8
    """How many times the KL is measured on the windows set apart."""
    patience: int = 2
    """Tuning stops after so many checks in a row that are worse than the best."""

    def set_apart(self, windows: int) -> int:
        """Return how many of so many windows are set apart."""
        return min(self.validation, windows // 4)

    def steps(self, windows: int) -> int:
        """Return the most steps that tuning takes on so many windows."""
        return (windows - self.set_apart(windows)) // self.batch


DEFAULT_SCHEDULE = TuningSchedule()


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A mix with other scales and norms, or as it was rounded where tuning did not help."""

    before: float
    """Mean KL on the windows set apart, nats per token, as rounded."""
    after: float
    """Mean KL on the same windows, nats per token, as it is now."""
    source: Checkpoint
    rounded: PackedSource = field(repr=False)
    learned: Mapping[str, Tensor] = field(repr=False)
    """Scales under ``<module>/<field>`` and norms under ``<name>/weight``, in the dtypes of the
    file; empty if untuned."""

    def packed(self, module: str, qtype: str) -> Packed:
        """Return a matrix on its type: the codes as rounded, the scales as learned."""
        parts, own = self.rounded(module, qtype), under(f"{module}/", self.learned)
        if not own:
            return parts
        fields = qtypes.get(qtype).unpack(parts)
        changed = {name: numbers.to(fields[name]) for name, numbers in own.items()}
        return qtypes.get(qtype).pack(fields | changed)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint with the norms as learned: what a file is written from."""
        return replace(self.source, reader=self._load)

    def _load(self, name: str) -> Tensor:
        weight = self.learned.get(f"{name}/weight")
        return self.source.load(name) if weight is None else weight.float()


def tune(
    checkpoint: Checkpoint,
    allocation: Mapping[str, str],
    packed: PackedSource,
    teacher: Teacher,
    work: WorkDir,
    progress: Progress,
    schedule: TuningSchedule = DEFAULT_SCHEDULE,
) -> Tuned:
    """Learn scales and norms of a mix, or take what an earlier run learned; the codes stay.

    Args:
        checkpoint: the original.
        allocation: module path → type name, for every matrix.
        packed: the matrices as they were rounded.
        teacher: the original on text to tune on, of at least four windows, each read once; the
            first are set apart (:func:`bitquilt.calibration.text.tuning_windows`).
        work: gets an artefact ``tuned/<allocation, matrices, text and schedule>``.
        progress: advances after each step, at most :meth:`TuningSchedule.steps` times; told what
            came of it.
        schedule: how long and how fast.
    """
    artefact = f"tuned/{_key(allocation, packed, teacher.tokens, schedule)}"
    if not work.has(artefact):
        before, after, learned = _learn(checkpoint, allocation, packed, teacher, progress, schedule)
        work.save(artefact, learned, {"before": repr(before), "after": repr(after)})
    with work.open(artefact) as handle:
        before, after = (float(handle.metadata()[name]) for name in ("before", "after"))
    outcome = (
        f"{after:.4g} after it"
        if after < before
        else "no lower after it, so the scales stay as they were"
    )
    progress.say(
        f"KL on text that was set apart: {before:.4g} nats/token before tuning the "
        f"scales, {outcome}"
    )
    return Tuned(
        before=before,
        after=after,
        source=checkpoint,
        rounded=packed,
        learned=work.load(artefact),
    )


def _key(
    allocation: Mapping[str, str], packed: PackedSource, tokens: Tensor, schedule: TuningSchedule
) -> str:
    """A name for what the result depends on, besides the settings of the work directory."""
    digest = hashlib.sha256(tokens.cpu().numpy().tobytes())
    digest.update(repr(schedule).encode())
    for module, qtype in allocation.items():
        digest.update(f"{module} {qtype}".encode())
        for part in packed(module, qtype).values():
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _learn(
    checkpoint: Checkpoint,
    allocation: Mapping[str, str],
    packed: PackedSource,
    teacher: Teacher,
    progress: Progress,
    schedule: TuningSchedule,
) -> tuple[float, float, dict[str, Tensor]]:
    """Mean KL on the windows set apart before and after, and the numbers that were best there."""
    student = Student(checkpoint, allocation, packed, compute_device())
    model = BlockwiseModel(checkpoint, student.weight)
    apart = schedule.set_apart(len(teacher.tokens))
    validation, training = teacher.windows(slice(apart)), teacher.windows(slice(apart, None))
    before = best = _mean_kl(model, validation)
    learned: dict[str, Tensor] = {}
    worse = 0
    for _ in _descent(model, student, training, math.sqrt(before), progress, schedule):
        now = _mean_kl(model, validation)
        if now < best:
            best, learned, worse = now, student.numbers(), 0
        elif (worse := worse + 1) == schedule.patience:
            break
    return before, best, learned


def _descent(
    model: BlockwiseModel,
    student: Student,
    training: Teacher,
    root_of_kl: float,
    progress: Progress,
    schedule: TuningSchedule,
) -> Iterator[None]:
    """Run Adam over all windows once; yield at every check, the last one at the end."""
    rate, batch, checks = schedule.rate * root_of_kl, schedule.batch, schedule.checks
    optimizer = torch.optim.Adam(student.changes(), lr=rate, betas=schedule.betas)
    total = len(training.tokens) // batch
    for index in range(total):
        optimizer.param_groups[0]["lr"] = rate * _share_of_rate(index, total, schedule.warm_up)
        windows = training.windows(slice(index * batch, (index + 1) * batch))
        optimizer.zero_grad()
        with reproducible_gradients(model.device):
            kl_loss(model, windows).backward()
        optimizer.step()
        progress.advance()
        if (index + 1) * checks // total > index * checks // total:
            yield


def _share_of_rate(index: int, total: int, warm_up: int) -> float:
    """Return a step's part of the highest learning rate: up a line, then down a cosine."""
    return min(1.0, (index + 1) / warm_up) * (1 + math.cos(math.pi * index / total)) / 2


@torch.no_grad()
def _mean_kl(model: BlockwiseModel, teacher: Teacher) -> float:
    """Mean KL over all tokens, a few windows at a time."""
    parts = [teacher.windows(rows) for rows in batches(teacher.tokens)]
    sums = [kl_loss(model, part).item() * len(part.tokens) for part in parts]
    return sum(sums) / len(teacher.tokens)
