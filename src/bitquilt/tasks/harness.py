"""EleutherAI's lm-evaluation-harness on our engines: its tasks, its metrics, our log-likelihoods.

    with open_engine("demo-4.5bit.gguf") as engine:
        metrics(engine, ["arc_easy", "piqa"], limit=None)

Its data sets come from the hub, so it is the one part of the evaluation that needs a network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from bitquilt.engines import Engine, GenerationRequest, Sampling, spoken
from bitquilt.errors import UserError
from bitquilt.metrics.intervals import exponential, wilson
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.progress import Progress, Silent
from bitquilt.talk.prompt import render_prompt
from bitquilt.tasks.likelihood import encode_pair, likelihoods, rolling
from bitquilt.tasks.scores import Z_95, Metric

ANSWERS_IN_BATCH = 16
MAX_TOKENS = 256
"""An answer has at most so many where a task sets no limit: the harness's own default."""
BOOTSTRAP_RESAMPLES = 1000
"""The harness draws so many samples for the error of a metric that is not a mean."""
SHARES = ("acc", "em", "exact_match", "f1", "mc1", "mc2", "pass")
"""How the names of metrics begin that are between 0 and 1."""
POSITIVE = ("perplexity", "bits_per_byte")
"""What is in the names of metrics that are positive."""


@cache
def task_manager() -> TaskManager:
    """Give the harness's index of its tasks, which takes seconds to make."""
    return TaskManager()


def metrics(
    engine: Engine, names: Sequence[str], limit: int | None, progress: Progress
) -> tuple[Metric, ...]:
    """Run some of the harness's tasks, as they come.

    Args:
        engine: the model.
        names: tasks or groups of the harness.
        limit: items of each task, the first; None for all.
        progress: shows requests as stages.

    Raises:
        UserError: the harness cannot run one, for want of its data mostly.
    """
    found = []
    for name in names:
        try:
            results = simple_evaluate(
                Harness(engine, progress),
                tasks=[name],
                limit=limit,
                bootstrap_iters=BOOTSTRAP_RESAMPLES,
                task_manager=task_manager(),
                log_samples=False,
            )
        except UserError:
            raise
        except Exception as error:  # whatever a task's own code and its data come to
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"lm-evaluation-harness cannot run {name}: {type(error).__name__}: {reason}; its "
                "data comes from the hub, so the first time needs a network"
            ) from error
        for task, values in results["results"].items():
            found += _metrics(task, values, _items(results, task))
    return tuple(found)


def _items(results: dict[str, Any], task: str) -> int:
    """How many items a task had; at least one."""
    return max(1, int(results.get("n-samples", {}).get(task, {}).get("effective", 1)))


def _metrics(task: str, values: dict[str, Any], items: int) -> list[Metric]:
    """Join a task's values with their errors: ``acc,none`` with ``acc_stderr,none``, and so on."""
    found = []
    for key, value in values.items():
        name, _, how = key.partition(",")
        if how and isinstance(value, float | int) and not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr,{how}")
            known = float(error) if isinstance(error, float | int) else math.nan
            label = name if how == "none" else f"{name} ({how})"
            found.append(Metric(task, label, estimate_of(name, float(value), known, items)))
    return found


def estimate_of(name: str, value: float, error: float, items: int) -> Estimate:
    """Give a metric of the harness with its 95 % interval, which holds nothing that it cannot be.

    Args:
        name: the metric's.
        value: the metric.
        error: its standard error; NaN where the harness gives none.
        items: what it is over.
    """
    if math.isnan(error):
        return Estimate(value, math.nan, math.nan)
    if name.startswith(SHARES) and 0 <= value <= 1:
        return wilson(value, value * (1 - value) / error**2 if error else items, Z_95)
    if any(word in name for word in POSITIVE) and value > 0:
        times = exponential(Z_95 * error / value)
        return Estimate(value, value / times, value * times)
    return Estimate(value, value - Z_95 * error, value + Z_95 * error)


class Harness(LM):  # type: ignore[misc]
    """A model of ours as the harness asks models."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._engine = engine

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Give each continuation's log-probability after its context, and whether it is greedy."""
        pairs = [self._pair(*request.args) for request in requests]
        with self._progress.stage("Log-likelihoods", len(pairs)):
            found = likelihoods(self._engine, pairs, self._progress)
        return [(one.nats, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Give the log-probability of each text, read in pieces as long as the model's context."""
        found = []
        with self._progress.stage("Texts", len(requests)):
            for request in requests:
                tokens = self._engine.tokenize(request.args[0])
                pairs = list(rolling(self._engine, tokens, self._first()))
                parts = likelihoods(self._engine, pairs, Silent())
                found.append(sum(part.nats for part in parts))
                self._progress.advance()
        return found

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer each context, up to its first stop string; in batches."""
        answers = []
        with self._progress.stage("Answers", len(requests)):
            for start in range(0, len(requests), ANSWERS_IN_BATCH):
                batch = requests[start : start + ANSWERS_IN_BATCH]
                answers += self._continued([request.args for request in batch])
                self._progress.advance(len(batch))
        return answers

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests, which templates change."""
        template = self._engine.info.chat_template or ""
        return hashlib.sha256(template.encode()).hexdigest()

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own template, for the harness's records."""
        return self._engine.info.chat_template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template has it."""
        info = self._engine.info
        return render_prompt(
            info.chat_template,
            chat_history,
            info.special_tokens,
            add_generation_prompt=add_generation_prompt,
        )

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return [self._first()], self._engine.tokenize(continuation)
        return encode_pair(self._engine, context, continuation)

    def _first(self) -> int:
        """Give the token that stands before a text: the start token, or else the end's."""
        special = self._engine.info.special_tokens
        return self._engine.tokenize(special.get("bos_token") or special["eos_token"])[0]

    def _continued(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Answer a batch; a row is dropped as soon as one of its stop strings is there."""
        stops = [_stops(settings) for _, settings in asked]
        requests = [self._request(context, settings) for context, settings in asked]
        said = [""] * len(asked)
        with self._engine.stream(requests) as stream:
            for row, piece in spoken(self._engine.info, stream):
                if _end(said[row], stops[row]) is not None:
                    continue  # the engine was a little ahead
                said[row] += "" if piece.control else piece.text
                if _end(said[row], stops[row]) is not None:
                    stream.drop(row)
        return [text[: _end(text, own)] for text, own in zip(said, stops, strict=True)]

    def _request(self, context: str, settings: dict[str, Any]) -> GenerationRequest:
        limit = int(settings.get("max_gen_toks", MAX_TOKENS))
        tokens = self._engine.tokenize(context, add_special=True)
        kept = tokens[-max(1, self._engine.info.context - limit) :]
        sampled = settings.get("do_sample", False)
        temperature = float(settings.get("temperature", 0.0)) if sampled else 0.0
        top_p = float(settings.get("top_p", 1.0))
        return GenerationRequest(
            tokens=kept, sampling=Sampling(temperature=temperature, top_p=top_p), max_tokens=limit
        )


def _stops(settings: dict[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _end(text: str, stops: Sequence[str]) -> int | None:
    """Find where the first of the stop strings begins; None without one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=None)
