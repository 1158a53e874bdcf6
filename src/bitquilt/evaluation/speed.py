"""How fast engines run models here: prompts, answers, memory, energy, against what is possible.

Models take turns, so that what else the machine does disturbs all of them alike; figures are
medians over the turns. Every prompt is another part of the held-out text, so nothing that an
engine has kept helps it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice, pairwise, product
from typing import Any

from bitquilt.calibration import corpus
from bitquilt.engines import GenerationRequest, Sampling
from bitquilt.errors import UserError
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.runtime.hardware import Hardware, joules, resident_bytes
from bitquilt.runtime.progress import Progress

DOCUMENTS = 40
"""Of the held-out text, whose beginnings and all prompts are from."""
LATE = 0.95


@dataclass(frozen=True)
class Load:
    """What is asked of a model."""

    prompt: int
    """Tokens."""
    batch: int
    """Prompts continued at once."""
    answer: int
    """Tokens of each answer."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One turn; times in seconds."""

    prompt_tokens: int
    """Those computed, of all rows."""
    first_token: float
    """Until every row has its first token."""
    answer_tokens: int
    """Those that came after that."""
    rest: float
    """From then to the end."""
    gaps: tuple[float, ...]
    """From each token of a row to the next."""
    joules: float | None
    resident: int
    """Bytes of memory that the engine's process has afterwards."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A model under one load; medians over the turns."""

    name: str
    engine: str
    nbytes: int
    load: Load
    prompt_rate: float
    """Prompt tokens a second, all rows together."""
    answer_rate: float
    """Answer tokens a second, all rows together."""
    slowest: float
    """Answer tokens a second in the slowest turn."""
    fastest: float
    first_token: float
    """Seconds until every row has one."""
    late_gap: float
    """Seconds between two tokens of a row that one gap in twenty exceeds."""
    resident: int
    """Bytes of memory that the engine's process has, the file's pages included."""
    joules: float | None
    """For a token, prompt and answer alike, with all that the processor does beside; None where
    the system does not tell."""
    of_bandwidth: float
    """The file read once for every progress, as a share of what memory gives."""
    of_flops: float
    """Two operations for every weight and prompt token, as a share of float32 products here."""


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` measured."""

    machine: Hardware
    speeds: tuple[Speed, ...]
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def bench(
    models: Sequence[str],
    prompts: Sequence[int],
    batches: Sequence[int],
    answer: int,
    rounds: int,
    progress: Progress | None = None,
) -> Bench:
    """Measure models under every combination of prompt length and batch size.

    Args:
        models: GGUF files and MLX directories.
        prompts: tokens of a prompt.
        batches: prompts at once.
        answer: tokens of an answer.
        rounds: turns of each model.
        progress: where progress goes.

    Raises:
        UserError: a model that cannot be loaded, or whose context is shorter than that.
    """
    progress = progress or Progress()
    candidates = ModelFile.several(models)
    loads = [Load(prompt, batch, answer) for prompt, batch in product(prompts, batches)]
    machine = Hardware.measured()
    speeds = []
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(candidate)) for candidate in candidates]
        for runner in runners:
            runner.check(loads)
        with progress.stage("Measuring", len(loads) * rounds * len(runners)):
            for load in loads:
                runs: list[list[Run]] = [[] for _ in runners]
                for turn in range(rounds):
                    for runner, own in zip(runners, runs, strict=True):
                        own.append(runner.run(load, turn))
                        progress.advance()
                pairs = zip(runners, runs, strict=True)
                speeds += [runner.speed(load, own, machine) for runner, own in pairs]
    return Bench(machine, tuple(speeds), rounds)


class Runner:
    """One model in its engine."""

    def __init__(self, candidate: ModelFile) -> None:
        self._candidate = candidate
        self._weights = sum(map(math.prod, candidate.shapes.values()))
        self._engine = candidate.start()
        texts = (document.text for document in corpus.bundled("held-out") if document.text)
        self._tokens = self._engine.tokenize("\n\n".join(islice(texts, DOCUMENTS)))
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
                f"{self._candidate.path} has a context of {self._engine.info.context:,} tokens and "
                f"{longest:,} are asked for; give a shorter --prompt or --answer"
            )

    def run(self, load: Load, turn: int) -> Run:
        """One turn: prompts that were not read before, continued at random but seeded."""
        sampling = Sampling(temperature=1.0, top_k=40, seed=turn)
        requests = [
            GenerationRequest(self._prompt(load.prompt), sampling, load.answer)
            for _ in range(load.batch)
        ]
        times: list[list[float]] = [[] for _ in requests]
        energy, started = joules(), time.perf_counter()
        with self._engine.stream(requests) as stream:
            for row, _ in stream:
                times[row].append(time.perf_counter() - started)
        ended = time.perf_counter() - started
        used = joules()
        first = max(row[0] for row in times)
        return Run(
            prompt_tokens=stream.prefilled,
            first_token=first,
            answer_tokens=sum(moment > first for row in times for moment in row),
            rest=ended - first,
            gaps=tuple(later - earlier for row in times for earlier, later in pairwise(row)),
            joules=None if used is None or energy is None else used - energy,
            resident=resident_bytes(self._engine.pid),
        )

    def _prompt(self, length: int) -> list[int]:
        """The next part of the text, which goes on from its start where it ends."""
        count = len(self._tokens)
        part = [self._tokens[(self._next + place) % count] for place in range(length)]
        self._next += length + 1  # a prompt as long as the text is another each time, too
        return part

    def speed(self, load: Load, runs: Sequence[Run], machine: Hardware) -> Speed:
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
        nbytes = self._candidate.nbytes
        return Speed(
            name=self._candidate.name,
            engine=self._candidate.engine,
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
