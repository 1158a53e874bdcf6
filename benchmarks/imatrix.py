"""Any GGUF file with an importance matrix: the knapsack beside llama.cpp's own mixes.

    python benchmarks/imatrix.py [--model MODEL] [--windows N] [PRESET…]

The model is written as an unquantized GGUF file, and `bitquilt imatrix` makes its importance matrix
of the bundled calibration text. Then `bitquilt quantize --imatrix` makes two files for each preset:
with llama.cpp's types, which is what llama-quantize writes, and of the same bytes with the
knapsack's. Both are rounded by ggml with the same matrix. The bytes and the KL of both are
printed, on held-out text of domains that the calibration text has none of, with 95 % intervals,
their share, and what the knapsack had predicted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from torch import Tensor

from bitquilt import ImatrixConfig, make_imatrix, quantize_gguf
from bitquilt.calibration import corpus
from bitquilt.calibration.text import encoder, held_out_windows
from bitquilt.metrics.intervals import Documents, Floats
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import PackedSource
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF
from bitquilt.targets.gguf.writing import write_gguf

WINDOW = 512


def main() -> None:
    """Print a row for every preset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens")
    parser.add_argument("presets", nargs="*", default=["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M"])
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.model)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        base, imatrix = folder / f"{checkpoint.name}.gguf", folder / "imatrix.gguf"
        write_gguf(
            checkpoint, dict.fromkeys(checkpoint.matrices, "F32"), _plain(checkpoint), base, "{}", 0
        )
        make_imatrix(asked.model, ImatrixConfig(output=imatrix), progress=Silent())
        judge = Judge(checkpoint, folder / "work", asked.windows)
        print(f"{checkpoint.name}, {judge.tokens:,} tokens of text unlike the calibration text")
        for preset in asked.presets:
            (theirs,) = quantize_gguf(
                base, imatrix=imatrix, recipe=preset, output=folder, progress=Silent()
            )
            (ours,) = quantize_gguf(
                base,
                imatrix=imatrix,
                size=f"{theirs.plan.nbytes}B",
                output=folder,
                progress=Silent(),
            )
            kl = [judge.kl(made.paths[0]) for made in (ours, theirs)]
            print(f"{preset}: {theirs.plan.nbytes:,} bytes, KL {judge.documents.positive(kl[1])}")
            print(f"  knapsack: {ours.plan.nbytes:,} bytes, KL {judge.documents.positive(kl[0])}")
            share = judge.documents.positive(*kl)
            print(f"  share {share}, predicted KL {ours.plan.predicted_kl:.4f}", flush=True)


class Judge:
    """The original on held-out text."""

    def __init__(self, checkpoint: Checkpoint, directory: Path, windows: int) -> None:
        self.checkpoint = checkpoint
        text, _ = held_out_windows(
            corpus.bundled("held-out"),
            corpus.bundled("calibration"),
            encoder(checkpoint),
            windows,
            WINDOW,
        )
        tokens, owners = text.tokens[: text.unlike], text.owners[: text.unlike]
        self.documents = Documents.of(owners[:, 1:].ravel().numpy())
        self.tokens = tokens[:, 1:].numel()
        self.teacher = OriginalModel(checkpoint, WorkDir(directory, {})).on(tokens, owners)

    def kl(self, path: Path) -> Floats:
        """Return the KL of a file, for each token."""
        weights = GGUF.read_weights(path)
        found = weights_metrics(self.teacher, self.checkpoint, weights.__getitem__)
        kl: Floats = found.kl.ravel()
        return kl


def _plain(checkpoint: Checkpoint) -> PackedSource:
    def packed(module: str, _: str) -> dict[str, Tensor]:
        return {"weight": checkpoint.load(f"{module}.weight")}

    return packed


if __name__ == "__main__":
    main()
