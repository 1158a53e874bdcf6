"""The forecast of a run: what it computes on, what it reads, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitquilt.allocation.plan import make_plans, planned_checkpoint, requests
from bitquilt.calibration.text_budget import LEAST_RACED
from bitquilt.config import AllocationConfig, PlanConfig, QuantizeConfig
from bitquilt.forecast.disk import DiskUse, disk_use
from bitquilt.forecast.machine import machine_speed
from bitquilt.forecast.memory import peak_bytes
from bitquilt.forecast.stages import StageSeconds
from bitquilt.forecast.time_limit import planned_work
from bitquilt.forecast.work import RunWork
from bitquilt.runtime.device import computing, device_name
from bitquilt.runtime.job import ExpectedStage
from bitquilt.runtime.load import BUSY, load_per_core, memory_of_machine
from bitquilt.runtime.progress import clock
from bitquilt.runtime.sizes import human
from bitquilt.targets import parse_targets


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one run will take on this machine: time to within a half, memory to within a third."""

    device: str
    """What is computed on, for people."""
    instead: str
    """The sentence that says that another search stands in for the one that was asked for; empty
    where none does."""
    load: float
    """Programs that wait for each core of this machine."""
    tokens: Mapping[str, int]
    """Stage → tokens of text that it reads."""
    stages: Sequence[ExpectedStage] = field(repr=False)
    """The stages in their order, with their seconds."""
    before: float
    """The seconds that were to be added if earlier runs had left nothing."""
    memory: int
    """Bytes at the peak."""
    machine_memory: int
    """Bytes that this machine has."""
    disk: DiskUse
    """Bytes that are there at once, beside what is there already."""

    @property
    def seconds(self) -> float:
        """The time of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def lines(self) -> Iterator[str]:
        """Say it in sentences."""
        parts = [f"{name} {count:,}" for name, count in self.tokens.items()]
        yield f"The work runs on {self.device}. It reads these tokens of text: {', '.join(parts)}."
        if self.instead:
            yield self.instead
        output = str(self.disk.output)
        yield (
            "If this machine stays as busy as it is now, the work takes about "
            f"{clock(self.seconds)} and {human(self.memory)} of memory. On the disk it takes at "
            f"most {human(self.disk.work_bytes)} in "
            f"{self.disk.work_dir} and {human(self.disk.output_bytes)} in "
            f"{'this directory' if output == '.' else output}."
        )
        if self.memory > self.machine_memory:
            yield (
                f"This machine has {human(self.machine_memory)} of memory, less than the work "
                "takes: the system may end it, or take very long."
            )
        if self.load > BUSY:
            yield "Other programs use this machine now; without them, the work takes less time."

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "device": self.device,
            "instead": self.instead,
            "tokens": dict(self.tokens),
            "seconds": round(self.seconds, 1),
            "memory_bytes": self.memory,
            "work_dir": str(self.disk.work_dir),
            "work_bytes": self.disk.work_bytes,
            "output": str(self.disk.output),
            "output_bytes": self.disk.output_bytes,
        }


def forecast_of(work: RunWork) -> Forecast:
    """Estimate a run whose plans are made; the machine is measured for about half a second."""
    speed = machine_speed(work.checkpoint)
    stages = StageSeconds(work, speed).stages()
    whole = StageSeconds(replace(work, afresh=True), speed).stages()
    return Forecast(
        device=device_name(),
        instead=_instead(work),
        load=load_per_core(),
        tokens=work.tokens,
        stages=stages,
        before=sum(stage.seconds for stage in whole) - sum(stage.seconds for stage in stages),
        memory=peak_bytes(work),
        machine_memory=memory_of_machine(),
        disk=disk_use(work),
    )


def _instead(work: RunWork) -> str:
    """Say it where a race was asked for and would take too long."""
    asked, used = work.config.search.method, work.search.method
    if asked == used or not any(plan.space for plan in work.plans):
        return ""
    return (
        f"The types are chosen by the exact knapsack, because a {asked} would take long on this "
        f"machine; --search-tokens={LEAST_RACED * work.budget.window} or more runs the {asked}."
    )


def estimate(model: str | Path, config: PlanConfig | None = None, **options: Any) -> Forecast:
    """Estimate what :func:`bitquilt.quantize` would take here, without any of its work.

    Args:
        model: hub id, Hugging Face directory, config.json, GGUF file, or ``demo``.
        config: what is wanted.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Raises:
        UserError: the model or the request makes no sense.
    """
    config = QuantizeConfig.of(None, options) if config is None else config
    if not isinstance(config, AllocationConfig):
        shared = {name: getattr(config, name) for name in vars(config)}
        config = QuantizeConfig(**shared)
    with (
        computing(config.device, config.threads),
        planned_checkpoint(model, config) as checkpoint,
    ):
        plans, _ = make_plans(checkpoint, requests(config), parse_targets(config.to))
        return forecast_of(planned_work(checkpoint, plans, config))
