"""KL on text of a domain that the calibration text has none of, ours beside the engines' own tools.

    python benchmarks/unlike_text.py [--model MODEL] [--mixes PRESET…] [--dwq N] [TYPE[:EMBEDDING]…]

The domains of the bundled calibration text are dealt into four groups, or as many as ``--folds``
says. Each group is left out once: the model is calibrated on the other groups, and held-out
documents of the domains of that group judge. So every domain is left out exactly once, with a
quarter of the others; domains like it, other languages say, may be among those that are read.

With a type, all matrices of the blocks are on it, and the embedding on Q6_K or 6bit-g64 if no other
is named, on both sides. The peer rounds GGUF types as llama-quantize does, with the importance
matrix of the same tokens, and MLX types as ``mlx_lm.convert -q`` does, or with ``--dwq N`` as
mlx-lm's DWQ does. It learns from N windows of 512 tokens of the other groups, less the first 32,
for hours without a GPU, and for many more without ``LD_PRELOAD=libopenblas.so.0``. With a preset,
the peer has that mix, and we have the mix that ``bitquilt quantize`` finds for its bytes where the
text of the other groups is given as ``--calibration``; half of what its search reads is of that
text, too. With ``--shaken`` the weights of a GGUF file are moved off its levels first, so that no
type wins by holding them.

A row is a domain: the KL of both with 95 % intervals, and their share. The last row has the
mean of the shares and the worst one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lib.bench import Bench, Weights
from lib.original import unquantized
from lib.shaken import shaken
from numpy.typing import NDArray

from bitquilt import qtypes, quantize
from bitquilt.allocation import presets
from bitquilt.allocation.preset_names import preset_names
from bitquilt.calibration import corpus
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import encoder, judging_windows, token_windows
from bitquilt.metrics.intervals import Documents
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import get_target

WINDOW, LEARNED_WINDOW = 256, 512
Row = tuple[NDArray[np.float32], NDArray[np.float32], Documents]
"""KL of each token of a domain, ours and theirs, and the documents of the tokens."""
Rows = dict[str, Row]
"""Domain → what was measured on it."""


def main() -> None:
    """Print a table for every type and every preset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shaken", action="store_true")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--windows", type=int, default=8, help=f"of {WINDOW} tokens, per domain")
    parser.add_argument("--mixes", nargs="*", default=[])
    parser.add_argument("--dwq", type=int, default=0, metavar="N")
    parser.add_argument("types", nargs="*", default=["Q2_K", "Q3_K", "Q4_K", "4bit-g64"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if asked.shaken:
            asked.model = str(shaken(Path(asked.model), Path(directory)))
        judge(asked)


def judge(asked: argparse.Namespace) -> None:
    """Leave each group out in turn."""
    checkpoint = open_checkpoint(asked.model)
    tables: dict[str, Rows] = {name: {} for name in [*asked.types, *asked.mixes]}
    for number in range(asked.folds):
        with tempfile.TemporaryDirectory() as directory:
            fold = Fold(checkpoint, Path(directory), number, asked.folds, asked.windows)
            for name, rows in tables.items():
                if name in asked.mixes:
                    made = fold.mixed(asked.model, name)
                else:
                    made = fold.uniform(asked.dwq, *name.split(":"))
                rows |= fold.rows(*made)
                if number + 1 < asked.folds:  # hours may pass, so what is known is told
                    print(f"{name}, after group {number + 1}: {summary(rows)}", flush=True)
    for name, rows in tables.items():
        print_table(f"{checkpoint.name}, {name}", rows)


class Fold:
    """A model calibrated on the domains of the other groups and judged on those of one."""

    def __init__(
        self, checkpoint: Checkpoint, directory: Path, number: int, folds: int, windows: int
    ) -> None:
        self.directory = directory
        documents = corpus.bundled("calibration")
        domains = sorted({document.domain for document in documents})
        self.left_out = domains[number::folds]
        self.documents = [d for d in documents if d.domain not in self.left_out]
        encode, held_out = encoder(checkpoint), corpus.bundled("held-out")
        judging = [
            judging_windows([d for d in held_out if d.domain == own], encode, windows, WINDOW)
            for own in self.left_out
        ]
        tokens, owners = (torch.cat(parts) for parts in zip(*judging, strict=True))
        self.bench = Bench(checkpoint, directory, self.documents, (tokens, owners), ["full"])

    def uniform(self, dwq: int, name: str, embedding: str | None = None) -> tuple[Weights, Weights]:
        """Put all matrices of the blocks on one type, by us and by the peer."""
        qtype, mlx = qtypes.get(name), "mlx" in qtypes.get(name).targets
        same = qtypes.get(embedding or ("6bit-g64" if mlx else "Q6_K"))
        ours = self.bench.ours(qtype, same, "full")
        if mlx and dwq:
            return ours, self.distilled(dwq, qtype, same)
        way = self.bench.mlx if mlx else self.bench.ggml_with_imatrix
        return ours, self.bench.theirs(qtype, same, way)

    def distilled(self, windows: int, qtype: QuantType, embedding: QuantType) -> Weights:
        """Let mlx-lm's DWQ learn from so many windows of the other groups."""
        from lib import dwq

        checkpoint = self.bench.checkpoint
        tokens = token_windows(self.documents, encoder(checkpoint), windows, LEARNED_WINDOW)
        original = unquantized(checkpoint, self.directory / "original")
        return dwq.rounded(original, qtype, embedding, tokens, dwq.RATES[-1])

    def mixed(self, model: str, preset: str) -> tuple[Weights, Weights]:
        """Find a mix of the bytes of a preset, and let the peer round the preset."""
        bench, checkpoint = self.bench, self.bench.checkpoint
        format_ = "gguf" if preset in preset_names("gguf") else "mlx"
        mix = presets.preset(preset, checkpoint, format_)
        text, work_dir = self.directory / "calibration.jsonl", self.directory / "work"
        write(text, self.documents)
        made = quantize(
            model,
            size=f"{get_target(format_).plan(checkpoint, mix).total_bytes}B",
            to=format_,
            calibration=text,
            output=self.directory / preset,
            work_dir=work_dir,
            progress=Silent(),
        ).outputs[0]
        with WorkDir(work_dir, json.loads((work_dir / "settings.json").read_text())) as work:
            bank = LayerBank(checkpoint, work, "full")
            ours = {
                module: qtypes.get(name).dequantize(bank.polished(module, name))
                for module, name in made.allocation.items()
            }
        way = bench.mlx if format_ == "mlx" else bench.ggml_with_imatrix
        return ours, {module: way(qtypes.get(name), module) for module, name in mix.items()}

    def rows(self, ours: Weights, theirs: Weights) -> Iterator[tuple[str, Row]]:
        """Measure both on each left-out domain."""
        owners = self.bench.teacher.owners
        assert owners is not None
        each = len(owners) // len(self.left_out)
        found = [self.bench.measured(weights).kl for weights in (ours, theirs)]
        for index, domain in enumerate(self.left_out):
            own = slice(index * each, (index + 1) * each)
            documents = Documents.of(owners[own, 1:].ravel().numpy())
            yield domain, (found[0][own].ravel(), found[1][own].ravel(), documents)


def write(path: Path, documents: list[Document]) -> None:
    """Write documents as a user would give them."""
    lines = (
        {key: value for key, value in asdict(document).items() if value is not None}
        for document in documents
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def print_table(title: str, rows: Rows) -> None:
    """Print a row per domain, and what they come to."""
    print(f"\n{title}\n  {'left-out domain':18}{'ours':30}{'theirs':30}share")
    for domain, (ours, theirs, documents) in sorted(rows.items()):
        kl = "".join(f"{documents.positive(values)!s:30}" for values in (ours, theirs))
        print(f"  {domain:18}{kl}{documents.positive(ours, theirs)}")
    print(f"  {summary(rows)}", flush=True)


def summary(rows: Rows) -> str:
    """Say what the domains come to."""
    shares = {domain: ours.sum() / theirs.sum() for domain, (ours, theirs, _) in rows.items()}
    worst = max(shares, key=lambda domain: shares[domain])
    mean = sum(shares.values()) / len(shares)
    return f"mean share {mean:.3f}, worst share {shares[worst]:.3f} ({worst})"


if __name__ == "__main__":
    main()
