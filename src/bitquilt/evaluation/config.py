"""What an evaluation and a bench can be asked for; cheap to import, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.runtime.compute import device_option, threads_option
from bitquilt.runtime.options import Options, option

ANSWERED = 1 / 8
"""The original writes answers of about so many tokens for each token of the text that is read."""
FEWEST, MOST = 8, 32
"""Answers, where no number is asked for: what intervals need, and what they gain little beyond."""
SHORTEST, LONGEST = 16, 256
"""Tokens that an answer may have before it is cut."""


@dataclass(frozen=True, kw_only=True)
class TraceConfig(Options):
    """How many of the text's questions the original answers."""

    count: int | None = option(
        "The original answers N of the text's questions, with random sampling, and each MODEL is "
        "measured on these answers too; those of a model that reasons are called reasoning "
        "traces. 0 leaves out these answers, and the ones that ORIGINAL and MODEL give side by "
        "side.  [default: 8 to 32, with at most an eighth of --tokens in all]",
        default=None,
        flag="--traces",
        metavar="N",
        least=0,
    )
    shown: int = option(
        "The original and the files answer this many of the questions greedily, for people to read "
        "side by side.",
        default=4,
        flag="",
        least=0,
    )

    def within(self, tokens: int) -> tuple[int, int]:
        """Give how many answers are drawn, and after how many tokens each is cut.

        Args:
            tokens: those of the text that is read.
        """
        share = round(tokens * ANSWERED)
        length = min(max(share // FEWEST, SHORTEST), LONGEST)
        return min(share // length, MOST) if self.count is None else self.count, length


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """What files are measured against, and on what text."""

    against: str | Path = option(
        "The files were made from this model: a hub id, a Hugging Face directory, a GGUF file, or "
        "demo.",
        metavar="ORIGINAL",
    )
    text: str | Path | None = option(
        "Files are measured on this text (.txt or .jsonl) instead of the bundled held-out text.",
        default=None,
        metavar="FILE",
        reads="",
        text=True,
    )
    wikitext: str | Path | None = option(
        "Files are also measured on all of this text in the way of `llama-perplexity "
        "--kl-divergence`, in windows of 512 tokens. If it is WikiText-2's wiki.test.raw, you can "
        "compare the figures with those that others publish.",
        default=None,
        metavar="FILE",
        reads="",
    )
    tokens: int = option(
        "About this many tokens of the text are read. The answers, the noise floor and the check "
        "of the engine each read a fraction of this number.",
        default=65_536,
        metavar="N",
        least=1024,
    )
    work_dir: str | Path | None = option(
        "The original's answers are kept in this directory for the next evaluation.  [default: "
        "the user's cache]",
        default=None,
        metavar="DIR",
    )
    device: str = device_option()
    threads: int | None = threads_option()
    traces: TraceConfig = dataclasses.field(default_factory=TraceConfig)


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Options):
    """What is asked of models to measure how fast they are."""

    prompt: Sequence[int] = option(
        "Prompts of these lengths, in tokens, are timed.",
        default=(128, 1024),
        metavar="N,N…",
        many=True,
        least=1,
    )
    batch: Sequence[int] = option(
        "Batches of so many prompts are timed; a batch is answered at once.",
        default=(1, 4),
        metavar="N,N…",
        many=True,
        least=1,
    )
    answer: int = option(  # tokens reach us in bursts: fewer say nothing of speed
        "Every answer has this many tokens.", default=64, metavar="N", least=16
    )
    rounds: int = option(
        "Each model has this many turns; figures are medians over them.",
        default=5,
        metavar="N",
        least=1,
    )
    threads: int | None = threads_option()
    documents: int = option(
        "The prompts are from this many documents of the held-out text.",
        default=40,
        flag="",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class PairConfig(Options):
    """How much is measured of a small model that drafts for a large one."""

    answers: int = option(
        "The large model answers this many questions.", default=8, metavar="N", least=1
    )
    length: int = option(
        "Every answer has at most this many tokens.",
        default=128,
        metavar="N",
        flag="--max-tokens",
        least=8,
    )
    threads: int | None = threads_option()
