"""The stages of an evaluation and the seconds that each will take, for one bar over all of them.

Every stage counts tokens × weights, so one number turns all of them into seconds: what a token
takes on its way to its logits on this machine, for each weight. What an earlier evaluation kept
takes none; the bar finds that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bitquilt.calibration.text_budget import WINDOW
from bitquilt.evaluation.config import EvalConfig
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.noise_floor import TORCH_EXCERPT
from bitquilt.evaluation.reference import WRITING
from bitquilt.forecast.machine import PassSpeed
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.job import ExpectedStage


def expected_stages(
    original: Checkpoint,
    files: Sequence[ModelFile],
    config: EvalConfig,
    speed: PassSpeed,
    protocol: int = 0,
) -> list[ExpectedStage]:
    """Give the stages of an evaluation of which nothing is kept yet, in their order.

    Args:
        original: the model.
        files: what is measured against it.
        config: says on what text.
        speed: of this machine.
        protocol: the tokens that are read by llama-perplexity's protocol.
    """
    through = original.layers * speed.block + speed.head
    second = original.weights_per_token / through
    stages = _stages(original, files, config, protocol)
    return [ExpectedStage(kind, units / second, like) for kind, units, like in stages]


def _stages(
    original: Checkpoint, files: Sequence[ModelFile], config: EvalConfig, protocol: int
) -> Iterator[tuple[str, float, str]]:
    """Yield the kind of each stage, its tokens × weights, and which stages are as fast as it."""
    count, length = config.traces.within(config.tokens)
    asks = count > 0 and original.chat_template is not None
    drawn, shown = (count * length, config.traces.shown * length) if asks else (0, 0)
    reading, writing = original.weights_per_token, original.weights_per_token * WRITING
    comparing = reading + 2 * original.head_weights
    if asks:
        yield "writing", (drawn + shown) * writing, ""
    read = config.tokens + drawn + protocol
    yield "reading", read * reading, "torch"
    yield "noise", _excerpt(config, TORCH_EXCERPT) * comparing, "torch"
    for target in dict.fromkeys(file.target for file in files):
        yield "noise", _excerpt(config, target.noise_excerpt) * comparing, target.name
    for file in files:
        times = 1 if file.target.engine_is_fast else 2
        again = times * _excerpt(config, file.target.noise_excerpt)
        yield "file", (read + again) * comparing, file.target.name
        if asks:
            yield "answers", shown * writing, file.target.name


def _excerpt(config: EvalConfig, shape: tuple[int, int]) -> int:
    """The tokens of an excerpt: so many windows, or all that there are, and so many of each."""
    windows, tokens = shape
    return min(windows, max(1, config.tokens // WINDOW)) * tokens
