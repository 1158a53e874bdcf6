"""Write what trains the demo model, and the problems that it is examined in.

Held-out documents and questions are written down for training to avoid. The text that ships with
bitquilt is built by `calibration-text/`, which takes held-out problems from here.

    python pack.py CORPUS.jsonl MODEL_DIRECTORY TRAINING_DATA PACKAGE
"""

import json
import lzma
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from conversations import exchange, problem
from problems import Problem
from tokenizers import Tokenizer

PROBLEMS = 200
HELD_OUT_MATHS = 72_000  # tokens of held-out conversations

Record = dict[str, Any]


def generate_maths(
    name: str, total: int, size: Callable[[str], int], excluded: set[str]
) -> tuple[list[Record], set[str]]:
    """Conversations without a system message, no question or solution twice or of `excluded`."""
    rng = random.Random(name)
    seen = set(excluded)
    chosen: list[Record] = []
    used = 0
    while used < total:
        made = problem(rng)
        if made.question in seen or made.solution in seen:
            continue
        seen |= {made.question, made.solution}
        used += size(made.question + made.solution)
        chosen.append(
            {
                "domain": "maths",
                "source": f"generated/{name}/{len(chosen)}",
                "licence": "Apache-2.0",
                "messages": exchange(made.question, made.solution),
            }
        )
    return chosen, seen


def held_out_problems() -> list[Problem]:
    rng = random.Random("held-out problems")
    chosen: dict[str, Problem] = {}
    while len(chosen) < PROBLEMS:
        made = problem(rng)
        chosen[made.question] = made
    return list(chosen.values())


def held_out_maths(size: Callable[[str], int]) -> tuple[list[Record], set[str]]:
    """Held-out conversations, and all questions and solutions that training must not have."""
    problems = held_out_problems()
    reserved = {words for made in problems for words in (made.question, made.solution)}
    return generate_maths("held-out", HELD_OUT_MATHS, size, reserved)


def write_lines(path: Path, records: Iterable[Record], preset: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = lines.encode()
    path.write_bytes(lzma.compress(data, preset=preset) if path.suffix == ".xz" else data)


def main() -> None:
    corpus_file, model, training, package = map(Path, sys.argv[1:])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with open(corpus_file) as lines:
        corpus = [json.loads(line) for line in lines]

    def size(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    problems = held_out_problems()
    _, reserved = held_out_maths(size)

    write_lines(
        package / "demo/problems.jsonl",
        ({"question": p.question, "answer": p.answer, "kind": p.kind} for p in problems),
    )
    write_lines(
        training / "corpus.jsonl.xz",
        ({"split": d["split"], "text": d["text"]} for d in corpus),
        preset=2,
    )
    (training / "excluded.json").write_text(json.dumps(sorted(reserved)))
    shutil.copy(model / "tokenizer.json", training)


if __name__ == "__main__":
    main()
