"""Cut the corpus into what trains the demo model and what ships with bitquilt.

Calibration text comes from training documents, held-out text from documents never trained on; both
only from sources that an Apache-2.0 package may carry. Held-out questions are written down for
training to avoid.

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
from sources import unit_hash
from tokenizers import Tokenizer

PROBLEMS = 200
CALIBRATION_TOKENS, HELD_OUT_TOKENS = 1_400_000, 240_000
EXCERPT = 60_000  # characters of one document; a novel would push out everything else
SHARES = {  # of the tokens
    "bible-kjv-text": 0.06, "r-cran-janeaustenr": 0.09, "jargon-text": 0.01,
    "python3.11-doc": 0.10, "postgresql-doc-15": 0.06, "python-django-doc": 0.05,
    "apache2-doc": 0.03,
    "libpython3.11-minimal": 0.15, "libpython3.11-stdlib": 0.15,
    "generated": 0.30,
}  # fmt: skip

Record = dict[str, Any]


def excerpt(text: str) -> str:
    """The beginning of a document up to the end of a paragraph."""
    if len(text) <= EXCERPT:
        return text
    end = text.rfind("\n\n", EXCERPT // 2, EXCERPT)
    return text[: end if end > 0 else EXCERPT]


def select_text(
    corpus: list[Record], split: str, total: int, size: Callable[[str], int]
) -> list[Record]:
    """Documents of each source in the order of their hashes, up to the source's share."""
    chosen = []
    for source, share in SHARES.items():
        documents = [d for d in corpus if d["source"] == source and d["split"] == split]
        used = 0
        for document in sorted(documents, key=lambda d: unit_hash(f"choose:{d['id']}")):
            if used >= share * total:
                break
            text = excerpt(document["text"])
            used += size(text)
            chosen.append(
                {
                    "domain": document["domain"],
                    "source": document["id"],
                    "licence": document["licence"],
                    "text": text,
                }
            )
    return chosen


def generate_maths(
    name: str, total: int, size: Callable[[str], int], excluded: set[str]
) -> tuple[list[Record], set[str]]:
    """Conversations without a system message, no question or solution twice or of `excluded`."""
    rng = random.Random(name)
    seen = set(excluded)
    chosen: list[Record] = []
    used = 0
    while used < SHARES["generated"] * total:
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
    reserved = {words for made in problems for words in (made.question, made.solution)}
    held_out, reserved = generate_maths("held-out", HELD_OUT_TOKENS, size, reserved)
    calibration, _ = generate_maths("calibration", CALIBRATION_TOKENS, size, reserved)
    held_out += select_text(corpus, "held-out", HELD_OUT_TOKENS, size)
    calibration += select_text(corpus, "train", CALIBRATION_TOKENS, size)

    data = package / "calibration/data"
    write_lines(data / "calibration.jsonl.xz", calibration)
    write_lines(data / "held_out.jsonl.xz", held_out)
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
