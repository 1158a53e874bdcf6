"""How fast engines run models here: prompts, answers, memory, energy, against what is possible.

Models take turns, so that what else the machine does disturbs all of them alike; figures are
medians over the turns. Every prompt is another part of the held-out text, so nothing that an
engine has kept helps it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

from bitquilt.calibration import corpus
from bitquilt.engines import GenerationRequest, Sampling, spoken
from bitquilt.errors import UserError
from bitquilt.evaluation.config import BenchConfig
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.whole_model import WholeModel, models_at
from bitquilt.runtime.device import computing
from bitquilt.runtime.hardware import Hardware, joules, resident_bytes
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.records import to_json

LATE = 0.95
"""The share of the gaps between tokens that are shorter than the late one."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a model at once."""

    prompt: int
    """The tokens of each prompt."""
    batch: int
    """The number of prompts that are continued at once."""
    answer: int
    """The tokens of each answer."""


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One turn; times in seconds."""

    prompt_tokens: int
    """The prompt tokens that were computed, of all rows."""
    first_token: float
    """The time until every row has its first token."""
    answer_tokens: int
    """The tokens that came after that."""
    rest: float
    """The time from then to the end."""
    gaps: Sequence[float]
    """The times from each token of a row to the next."""
    joules: float | None
    """The energy that the processor used; None where the system does not tell it."""
    resident: int
    """The bytes of memory that the engine's process has afterwards."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A model under one load; medians over the turns."""

    name: str
    """The name for tables."""
    engine: str
    """The engine that ran the model."""
    nbytes: int
    """The size on disk; of a whole model, that of its float32 weights in memory."""
    load: Load
    """What was asked of it."""
    prompt_rate: float
    """Prompt tokens a second, all rows together."""
    answer_rate: float
    """Answer tokens a second, all rows together."""
    slowest: float
    """Answer tokens a second in the slowest turn."""
    fastest: float
    """Answer tokens a second in the fastest turn."""
    first_token: float
    """Seconds until every row has its first token."""
    late_gap: float
    """Seconds between two tokens of a row that one gap in twenty exceeds."""
    resident: int
    """Bytes of memory that the engine's process has, the file's pages included."""
    joules: float | None
    """The energy of a token, of prompt or answer, with all that the processor does beside; None
    where the system does not tell it."""
    of_bandwidth: float
    """The file read once for every step, as a share of what memory gives."""
    of_flops: float
    """Two operations for every weight and prompt token, as a share of float32 products here."""


@dataclass(frozen=True)
class BenchResult:
    """What :func:`bench` measured."""

    machine: Hardware
    """The limits that speeds are held against."""
    speeds: Sequence[Speed]
    """The models under each load, side by side."""
    rounds: int
    """The number of turns of each model."""

    def to_dict(self) -> dict[str, Any]:
        """Give the speeds in JSON types."""
        found: dict[str, Any] = to_json(self)
        return found


def bench(
    models: str | Path | Sequence[str | Path],
    config: BenchConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> BenchResult:
    """Measure models under every combination of prompt length and batch size.

    Args:
        models: GGUF files, MLX directories, and whole models, which PyTorch runs in float32; one,
            or several.
        config: what is asked of the models, and how often.
        progress: where progress goes; stderr if not given.
        options: the fields of :class:`bitquilt.BenchConfig`, instead of a config.

    Raises:
        UserError: a model cannot be loaded, or its context is shorter than what is asked for.
    """
    config = BenchConfig.of(config, options)
    with computing("cpu", config.threads):
        return _bench(models, config, progress or Progress())


def _bench(
    models: str | Path | Sequence[str | Path], config: BenchConfig, progress: Progress
) -> BenchResult:
    files = models_at(models)
    loads = [
        Load(prompt=prompt, batch=batch, answer=config.answer)
        for prompt, batch in product(config.prompt, config.batch)
    ]
    machine = Hardware.measured()
    speeds: list[Speed] = []
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(file, config.documents)) for file in files]
        for runner in runners:
            runner.check(loads)
        with progress.stage("Measuring", len(loads) * config.rounds * len(runners)):
            for load in loads:
                runs: list[list[TimedRun]] = [[] for _ in runners]
                for turn in range(config.rounds):
                    for runner, own in zip(runners, runs, strict=True):
                        own.append(runner.run(load, turn))
                        progress.advance()
                pairs = zip(runners, runs, strict=True)
                speeds += [runner.speed(load, own, machine) for runner, own in pairs]
    return BenchResult(machine, tuple(speeds), config.rounds)


class Runner:
    """One model in its engine."""

    def __init__(self, file: ModelFile | WholeModel, documents: int) -> None:
        """Start the engine; prompts are from this many documents of the held-out text."""
        self._file = file
        self._weights = file.weights
        self._engine = file.start()
        texts = (document.text for document in corpus.bundled("held-out") if document.text)
        self._tokens = self._engine.tokenize("\n\n".join(islice(texts, documents)))
        self._next = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def check(self, loads: Sequence[Load]) -> None:
        """Refuse loads that are beyond the model's context."""
        longest = max(load.prompt + load.answer for load in loads)
        if longest > self._engine.info.context:
            raise UserError(
                f"{self._file.path} has a context of {self._engine.info.context:,} tokens, but "
                f"{longest:,} are asked for; give a shorter --prompt or --answer"
            )

    def run(self, load: Load, turn: int) -> TimedRun:
        """One turn: prompts that were not read before, continued at random but seeded."""
        sampling = Sampling(temperature=1.0, top_k=40, seed=turn)
        requests = [
            GenerationRequest(
                tokens=self._prompt(load.prompt), sampling=sampling, max_tokens=load.answer
            )
            for _ in range(load.batch)
        ]
        times: list[list[float]] = [[] for _ in requests]
        energy, started = joules(), time.perf_counter()
        with self._engine.stream(requests) as stream:
            for row, _ in spoken(self._engine.info, stream):
                times[row].append(time.perf_counter() - started)
        ended = time.perf_counter() - started
        used = joules()  # less than before where the counter has begun anew
        first = max(row[0] for row in times)
        return TimedRun(
            prompt_tokens=stream.prefilled,
            first_token=first,
            answer_tokens=sum(moment > first for row in times for moment in row),
            rest=ended - first,
            gaps=tuple(later - earlier for row in times for earlier, later in pairwise(row)),
            joules=None if used is None or energy is None or used < energy else used - energy,
            resident=resident_bytes(self._engine.pid),
        )

    def _prompt(self, length: int) -> list[int]:
        """The next part of the text, which goes on from its start where it ends."""
        count = len(self._tokens)
        part = [self._tokens[(self._next + place) % count] for place in range(length)]
        self._next += length + 1  # a prompt as long as the text is another each time, too
        return part

    def speed(self, load: Load, runs: Sequence[TimedRun], machine: Hardware) -> Speed:
        """The turns under one load, summed up."""
        prompts = [run.prompt_tokens / run.first_token for run in runs]
        answers = [run.answer_tokens / run.rest for run in runs]
        gaps = sorted(gap for run in runs for gap in run.gaps)
        energies = [
            run.joules / (run.prompt_tokens + run.answer_tokens)
            for run in runs
            if run.joules is not None
        ]
        prompt_rate, answer_rate = statistics.median(prompts), statistics.median(answers)
        nbytes = self._file.nbytes
        return Speed(
            name=self._file.name,
            engine=self._file.engine,
            nbytes=nbytes,
            load=load,
            prompt_rate=prompt_rate,
            answer_rate=answer_rate,
            slowest=min(answers),
            fastest=max(answers),
            first_token=statistics.median(run.first_token for run in runs),
            late_gap=gaps[int(LATE * len(gaps))] if gaps else 0.0,
            resident=max(run.resident for run in runs),
            joules=statistics.median(energies) if energies else None,
            of_bandwidth=nbytes * answer_rate / load.batch / machine.bandwidth,
            of_flops=2 * self._weights * prompt_rate / machine.flops,
        )
