"""What an evaluation and a bench can be asked for; cheap to import, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.runtime.compute import device_option, threads_option
from bitquilt.runtime.options import Options, option


@dataclass(frozen=True, kw_only=True)
class TraceConfig(Options):
    """How much reasoning the original writes about the text's questions."""

    count: int = option(
        "The original answers this many of the questions at random.", default=32, flag="", least=1
    )
    tokens: int = option("An answer is cut after this many tokens.", default=256, flag="", least=1)
    shown: int = option(
        "The original and the files answer this many of the questions greedily, for people to read "
        "side by side.",
        default=4,
        flag="",
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """What files are measured against, and on what text."""

    against: str | Path = option(
        "The files were made from this model: a hub id, a Hugging Face directory, a GGUF file, or "
        "demo.",
        metavar="ORIGINAL",
    )
    text: str | Path | None = option(
        "These documents are read instead of the bundled held-out text (.txt or .jsonl).",
        default=None,
        metavar="FILE",
    )
    tokens: int = option(
        "About this many tokens of the text are read.", default=65_536, metavar="N", least=1024
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
        "Prompts have these numbers of tokens.",
        default=(128, 1024),
        metavar="N,N…",
        many=True,
        least=1,
    )
    batch: Sequence[int] = option(
        "These numbers of prompts are continued at once.",
        default=(1, 4),
        metavar="N,N…",
        many=True,
        least=1,
    )
    answer: int = option(  # tokens reach us in bursts: fewer say nothing of speed
        "An answer has this many tokens.", default=64, metavar="N", least=16
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
