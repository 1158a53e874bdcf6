"""What trimming a vocabulary costs: bits per byte of held-out text, before and after.

    python benchmarks/trim.py ORIGINAL TRIMMED... [--language en] [--bytes 200000]

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

from bitquilt.calibration.corpus import Document, bundled
from bitquilt.calibration.text import encoder
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel, logit_tokens
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.trimming.ranking import language_of

CHARACTERS = 2000
"""Of a document, at most."""


def beginnings(language: str, nbytes: int) -> list[Document]:
    """The beginnings of held-out documents of a language, of each domain in turn."""
    domains: dict[str, list[Document]] = {}
    for document in bundled("held-out"):
        if language_of(document) == language:
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
def bits_and_tokens(checkpoint: Checkpoint, documents: Sequence[Document]) -> tuple[float, int]:
    """The bits that a model needs for all of the documents, and its tokens."""
    encode, model = encoder(checkpoint), BlockwiseModel(checkpoint)
    windows = [encode(document) for document in documents]
    length = max(map(len, windows))
    padded = torch.zeros(len(windows), length, dtype=torch.int64)
    for row, ids in zip(padded, windows, strict=True):
        row[: len(ids)] = torch.tensor(ids)  # what follows cannot be seen from before
    hidden, head = model.last_hidden(padded), model.head()
    nats = 0.0
    for ids, row in zip(windows, hidden, strict=True):
        at_once = logit_tokens(len(head))
        labels = torch.tensor(ids[1:])
        for states, wanted in zip(
            row[: len(labels)].split(at_once), labels.split(at_once), strict=True
        ):
            nats += float(
                torch.nn.functional.cross_entropy(states @ head.T, wanted, reduction="sum")
            )
    return nats / math.log(2), sum(len(ids) - 1 for ids in windows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--language", default="en")
    parser.add_argument("--bytes", type=int, default=200_000)
    asked = parser.parse_args()
    documents = beginnings(asked.language, asked.bytes)
    nbytes = sum(len((document.text or "").encode()) for document in documents)
    print(f"held-out text, {asked.language}: {len(documents)} documents, {nbytes:,} bytes")
    first = None
    for name in asked.models:
        checkpoint = open_checkpoint(name)
        bits, tokens = bits_and_tokens(checkpoint, documents)
        first = first or bits
        print(
            f"{name}: {checkpoint.weights:,} weights, {bits / nbytes:.4f} bits per byte "
            f"({bits / first - 1:+.2%}), {tokens / nbytes:.4f} tokens per byte"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
