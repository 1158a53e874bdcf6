"""What trimming a vocabulary costs: bits per byte of held-out text, before and after.

    python benchmarks/trim.py ORIGINAL TRIMMED... [--language en] [--bytes 60000]

Token KL is undefined between vocabularies, and perplexity per token does not compare. Bits per byte
do: each document's beginning, the same characters for every model, is one window after the start
token, and all of its tokens count.
"""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from bitquilt.calibration.corpus import Document, bundled
from bitquilt.calibration.text import encoder
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel, logit_tokens
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.trimming.ranking import language_of

CHARACTERS = 2000
"""Of a document, at most."""
MISLABELLED = ("D-FSL-1.0.json",)
"""The held-out licences are all called English; this one is in German."""


def beginnings(language: str, nbytes: int) -> list[Document]:
    """The beginnings of held-out documents of a language, of each domain in turn."""
    domains: dict[str, list[Document]] = {}
    for document in bundled("held-out"):
        if language_of(document) == language and not any(
            name in document.source for name in MISLABELLED
        ):
            domains.setdefault(document.domain, []).append(document)
    found, size = [], 0
    for turn in range(max(map(len, domains.values()))):
        for own in domains.values():
            if turn < len(own) and size < nbytes:
                text = "\n\n".join(own[turn].passages)[:CHARACTERS]
                found.append(Document(own[turn].domain, own[turn].source, text, None))
                size += len(text.encode())
    return found


@torch.no_grad()
def bits_and_tokens(
    checkpoint: Checkpoint, documents: Sequence[Document]
) -> dict[str, tuple[float, int]]:
    """The bits that a model needs for the documents of each domain, and its tokens."""
    encode, model = encoder(checkpoint), BlockwiseModel(checkpoint)
    windows = [encode(document) for document in documents]
    length = max(map(len, windows))
    padded = torch.zeros(len(windows), length, dtype=torch.int64)
    for row, ids in zip(padded, windows, strict=True):
        row[: len(ids)] = torch.tensor(ids)  # what follows cannot be seen from before
    hidden, head = model.last_hidden(padded), model.head()
    at_once, found = logit_tokens(len(head)), dict.fromkeys((d.domain for d in documents), (0.0, 0))
    for document, ids, row in zip(documents, windows, hidden, strict=True):
        bits, tokens = found[document.domain]
        wanted = torch.tensor(ids[1:])
        parts = zip(row[: len(wanted)].split(at_once), wanted.split(at_once), strict=True)
        nats = sum(float(cross_entropy(h @ head.T, t, reduction="sum")) for h, t in parts)
        found[document.domain] = bits + nats / math.log(2), tokens + len(wanted)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--language", default="en")
    parser.add_argument("--bytes", type=int, default=60_000)
    asked = parser.parse_args()
    documents = beginnings(asked.language, asked.bytes)
    nbytes: dict[str, int] = {}
    for document in documents:
        size = len((document.text or "").encode())
        nbytes[document.domain] = nbytes.get(document.domain, 0) + size
    total = sum(nbytes.values())
    print(f"held-out text, {asked.language}: {len(documents)} documents, {total:,} bytes")
    first: dict[str, tuple[float, int]] = {}
    for name in asked.models:
        checkpoint = open_checkpoint(name)
        found = bits_and_tokens(checkpoint, documents)
        first = first or found
        print(f"{name}: {checkpoint.weights:,} weights", flush=True)
        for title, some in [("all", list(found)), *((one, [one]) for one in found)]:
            (bits, tokens), (was, _) = (
                map(sum, zip(*(model[one] for one in some), strict=True))
                for model in (found, first)
            )
            size = sum(nbytes[one] for one in some)
            print(
                f"  {title}: {bits / size:.4f} bits per byte ({bits / was - 1:+.2%}), "
                f"{tokens / size:.4f} tokens per byte",
                flush=True,
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
