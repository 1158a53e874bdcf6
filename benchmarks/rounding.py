"""Compare rounding alone: every type, ours and its peers', on the same text.

    python benchmarks/rounding.py [--model MODEL] [TYPE…]

All matrices of the blocks go onto one type. With GGUF types the embedding has Q6_K, in each side's
own rounding. With MLX types it has the same type, as ``mlx_lm.convert -q`` gives it, or 6 bits
beside mlx-lm's gptq, which gives it those. Each line has the mean KL on each kind of held-out text
with its 95 % interval, that KL as a part of the first line's, and the seconds of rounding.
AutoRound has a line where it is installed; it tunes for minutes to hours without a GPU.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lib import autoround, peers
from lib.timed import MAXRSS_UNIT
from torch import Tensor

from bitquilt import qtypes
from bitquilt.calibration import corpus
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.text import (
    calibration_documents,
    encoder,
    held_out_windows,
    token_windows,
)
from bitquilt.calibration.text_budget import WINDOW, text_budget
from bitquilt.metrics.kl import Estimate
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import ClosingTeacher, weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.qtypes.kquants import Signed, WithMins
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding import METHODS
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir

HELD_OUT = 32
Weights = dict[str, Tensor]
"""Module path → the matrix as an engine would have it."""


class Bench:
    """Holds a checkpoint, its statistics, and what the original says of held-out text."""

    def __init__(self, checkpoint: Checkpoint, directory: Path) -> None:
        self.checkpoint = checkpoint
        encode = encoder(checkpoint)
        much = text_budget(sum(rows * columns for rows, columns in checkpoint.matrices.values()))
        documents, _ = calibration_documents(None)
        self.tokens = token_windows(documents, encode, much.calibration, WINDOW)
        self.banks = {}
        for method in METHODS:
            work = WorkDir(directory / method, {})
            self.banks[method] = LayerBank(checkpoint, work, method)
        held_out, _ = held_out_windows(
            corpus.bundled("held-out"), documents, encode, HELD_OUT, WINDOW
        )
        for bank in self.banks.values():
            collect_statistics(
                BlockwiseModel(checkpoint), self.tokens, much.gradients, bank.work, Silent()
            )
        self.statistics = bank.statistics
        teacher = OriginalModel(checkpoint, bank.work).on(held_out.tokens, held_out.owners)
        self.closing = ClosingTeacher(teacher, held_out.unlike)
        self.blocks = [
            module for module in checkpoint.matrices if module.startswith("model.layers")
        ]

    def theirs(
        self, qtype: QuantType, embedding: QuantType, way: Callable[[QuantType, str], Tensor]
    ) -> Weights:
        """Round every matrix as a peer does."""
        return {m: way(qtype, m) for m in self.blocks} | {EMBEDDING: way(embedding, EMBEDDING)}

    def ours(self, qtype: QuantType, embedding: QuantType, method: str) -> Weights:
        """Round every matrix with our bank."""
        bank, allocation = (
            self.banks[method],
            dict.fromkeys(self.blocks, qtype) | {EMBEDDING: embedding},
        )
        wanted = {module: [on.name] for module, on in allocation.items()}
        round_layers(bank, wanted, Silent())
        polish_layers(bank, wanted, Silent())
        return {m: on.dequantize(bank.polished(m, on.name)) for m, on in allocation.items()}

    def kl(self, weights: Weights) -> dict[str, Estimate]:
        """Return the mean KL on each kind of text."""

        def load(name: str) -> Tensor:
            module = name.removesuffix(".weight")
            return weights[module] if module in weights else self.checkpoint.load(name)

        found = weights_metrics(self.closing.teacher, self.checkpoint, load)
        kinds = self.closing.figures(found, "torch").kinds
        return {kind: figures.kl for kind, figures in kinds.items()}

    def ggml(self, qtype: QuantType, module: str) -> Tensor:
        """Round as llama-quantize does without an importance matrix."""
        return peers.ggml(qtype, self._weight(module), None)

    def ggml_with_imatrix(self, qtype: QuantType, module: str) -> Tensor:
        """Round as llama-quantize does with an importance matrix from our calibration text."""
        return peers.ggml(qtype, self._weight(module), self.statistics.importance(module))

    def toolkit(self, qtype: QuantType, module: str) -> Tensor:
        """Round by plain GPTQ as the GPTQ + GGUF toolkit does; the embedding is ggml's there."""
        if module == EMBEDDING:
            return self.ggml_with_imatrix(qtype, module)
        return peers.plain_gptq(qtype, self._weight(module), self.statistics.hessian(module))

    def mlx(self, qtype: QuantType, module: str) -> Tensor:
        """Round as ``mlx_lm.convert -q`` does."""
        return peers.mlx(qtype, self._weight(module))

    def mlx_gptq(self, qtype: QuantType, module: str) -> Tensor:
        """Round one matrix as mlx-lm's gptq does, on our Hessian."""
        if module == EMBEDDING:
            return self.mlx(qtype, module)
        return peers.mlx_gptq(qtype, self._weight(module), self.statistics.hessian(module))

    def auto_round(self, qtype: QuantType, embedding: QuantType) -> Weights:
        """Round as AutoRound does on our text; the embedding as the file's own tools do."""
        plain = self.mlx if "mlx" in qtype.targets else self.ggml_with_imatrix
        tuned = autoround.rounded(self.checkpoint, qtype, self.tokens)
        return tuned | {EMBEDDING: plain(embedding, EMBEDDING)}

    def _weight(self, module: str) -> Tensor:
        return self.checkpoint.load(f"{module}.weight")

    def lines(self, qtype: QuantType) -> Iterator[tuple[str, Callable[[], Weights]]]:
        """Yield what is measured on a type; shares are of the first line."""
        if "mlx" in qtype.targets:
            yield "mlx-lm convert -q", lambda: self.theirs(qtype, qtype, self.mlx)
            same = qtype
        else:
            same = qtypes.get("Q6_K")
            yield (
                "ggml, importance matrix",
                lambda: self.theirs(qtype, same, self.ggml_with_imatrix),
            )
            yield "ggml", lambda: self.theirs(qtype, same, self.ggml)
        if isinstance(qtype, (WithMins, Signed)):
            yield "plain GPTQ (toolkit's)", lambda: self.theirs(qtype, same, self.toolkit)
        if qtype.name in autoround.SCHEMES and autoround.installed():
            yield "AutoRound", lambda: self.auto_round(qtype, same)
        for method in METHODS:
            yield f"ours, {method}", lambda method=method: self.ours(qtype, same, method)
        if qtype.name in ("2bit-g64", "4bit-g64", "8bit-g64"):
            six = qtypes.get("6bit-g64")
            yield "mlx-lm gptq, 6-bit embedding", lambda: self.theirs(qtype, six, self.mlx_gptq)
            yield "ours, full, the same", lambda: self.ours(qtype, six, "full")


def main() -> None:
    """Print a few lines for each type."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("types", nargs="*", default=[*qtypes.names("gguf"), *qtypes.names("mlx")])
    asked = parser.parse_args()
    if not autoround.installed():
        print("no lines of AutoRound, which is not installed: pip install auto-round")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(open_checkpoint(asked.model), Path(directory))
        for name in dict.fromkeys(asked.types):
            qtype = qtypes.get(name)
            if name in ("BF16", "F32"):
                continue
            print(f"{name} ({qtype.bits:.4g} bits)")
            first = None
            for label, weights in bench.lines(qtype):
                started = time.monotonic()
                made = weights()
                seconds = time.monotonic() - started
                found = bench.kl(made)
                first = first or found
                cells = "".join(
                    f"{kind:8}{kl!s:30}{kl.mean / first[kind].mean:7.3f}   "
                    for kind, kl in found.items()
                )
                print(f"  {label:30}{cells}{seconds:8.1f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT / 1e9
    print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
