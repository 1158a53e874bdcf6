"""What an evaluation and a bench can be told; cheap to import, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """How much reasoning the original writes about the text's questions."""

    count: int = 32
    """The number of questions that are answered at random."""
    tokens: int = 256
    """An answer is cut after this many tokens."""
    shown: int = 4
    """The number of questions that are answered greedily, for people to read side by side."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What files are measured against, and on what text."""

    against: str | Path
    """The model that the files were made from: a hub id, a Hugging Face directory, a GGUF file, or
    ``demo``."""
    text: str | Path | None = None
    """These documents (.txt or .jsonl) are read instead of the bundled held-out ones."""
    tokens: int = 65_536
    """About this many tokens of the text are read."""
    work_dir: str | Path | None = None
    """The original's answers are kept here for the next evaluation; in the user's cache if not
    given."""
    traces: TraceConfig = field(default_factory=TraceConfig)
    """How much reasoning the original writes."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How fast models are to be measured."""

    prompt: Sequence[int] = (128, 1024)
    """Prompts have these numbers of tokens."""
    batch: Sequence[int] = (1, 4)
    """These numbers of prompts are continued at once."""
    answer: int = 64
    """An answer has this many tokens."""
    rounds: int = 5
    """Each model has this many turns; figures are medians over them."""
    documents: int = 40
    """The prompts are from this many documents of the held-out text."""
