"""Compare rounding alone: every type, ours and its peers', on the same text.

    python benchmarks/rounding.py [--model MODEL] [--tune N | --dwq N] [OPTION…] [TYPE…]

All matrices of the blocks go onto one type. With GGUF types the embedding has Q6_K, in each side's
own rounding. With MLX types it has the same type, as ``mlx_lm.convert -q`` gives it, and then 6
bits, as mlx-lm's gptq gives it, beside all that have the same bytes. Each line has the mean KL on
each kind of held-out text with its 95 % interval, that KL as a part of the first line's, and the
seconds of rounding. AutoRound has a line where it is installed; it tunes for minutes to hours
without a GPU. With ``--tune N``, mlx-lm's DWQ and our tuning read N windows of text, of which 32
say how far they are; with ``--dwq N`` DWQ alone does, at its better rate. With ``--equal`` MLX
types have the lines of equal bytes only. With ``--sequential`` a last line has each block rounded
again for those before it. ``--held-out N`` windows of each kind of text judge in
place of 32, and with ``--text FILE`` the documents of that file do in place of the bundled ones.
Without a GPU mlx multiplies by a plain BLAS: it is about fifteen times as fast with
``LD_PRELOAD=libopenblas.so.0`` before the command.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lib import autoround
from lib.bench import Bench, Weights
from lib.original import unquantized
from lib.timed import MAXRSS_UNIT
from torch import Tensor

from bitquilt import qtypes
from bitquilt.calibration import corpus
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import (
    calibration_documents,
    encoder,
    held_out_documents,
    held_out_windows,
    tuning_windows,
)
from bitquilt.calibration.text_budget import WINDOW
from bitquilt.metrics.teacher import ClosingTeacher
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.kquants import Signed, WithMins
from bitquilt.qtypes.qtype import QuantType
from bitquilt.rounding import METHODS
from bitquilt.rounding.tuning import distill

HELD_OUT = 32


class Learning(NamedTuple):
    """What learns from text, and which."""

    tokens: Tensor
    """int64 [N, L]; the first windows validate."""
    ours: bool
    """Whether our tuning learns, too, and DWQ at all of its rates."""


def lines(
    bench: Bench,
    qtype: QuantType,
    original: Path | None,
    learning: Learning | None,
    sequential: bool,
) -> Iterator[tuple[str, Callable[[], Weights]]]:
    """Yield what is measured on a type; shares are of the first line."""
    six = qtypes.get("6bit-g64" if "mlx" in qtype.targets else "Q6_K")
    if original is not None and "mlx" in qtype.targets:
        yield from mlx_lines(bench, qtype, original, learning)
    else:
        yield from gguf_lines(bench, qtype, six, learning)
    if sequential:
        yield "ours, full, sequential", lambda: bench.corrected(qtype, six)


def gguf_lines(
    bench: Bench, qtype: QuantType, six: QuantType, learning: Learning | None
) -> Iterator[tuple[str, Callable[[], Weights]]]:
    """Yield what is measured on a type of GGUF files, the embedding on 6 bits."""
    yield "ggml, importance matrix", lambda: bench.theirs(qtype, six, bench.ggml_with_imatrix)
    yield "ggml", lambda: bench.theirs(qtype, six, bench.ggml)
    if isinstance(qtype, (WithMins, Signed)):
        yield "plain GPTQ (toolkit's)", lambda: bench.theirs(qtype, six, bench.toolkit)
    if qtype.name in autoround.SCHEMES and autoround.installed():
        yield "AutoRound", lambda: bench.auto_round(qtype, six)
    for method in bench.banks:
        yield f"ours, {method}", lambda method=method: bench.ours(qtype, six, method)
    if learning is not None and learning.ours:
        yield "ours, full, tuned", lambda: bench.tuned(qtype, six, learning.tokens)


def mlx_lines(
    bench: Bench, qtype: QuantType, original: Path, learning: Learning | None
) -> Iterator[tuple[str, Callable[[], Weights]]]:
    """Yield what is measured on a type of MLX files, first with the embedding on it, too."""
    from lib import dwq

    if len(bench.banks) > 1:
        yield "mlx-lm convert -q", lambda: bench.theirs(qtype, qtype, bench.mlx)
        for method in bench.banks:
            yield f"ours, {method}", lambda method=method: bench.ours(qtype, qtype, method)
    six = qtypes.get("6bit-g64")
    yield "6-bit embedding: mlx-lm", lambda: bench.theirs(qtype, six, bench.mlx)
    if qtype.name in ("2bit-g64", "4bit-g64", "8bit-g64"):
        yield "… mlx-lm gptq", lambda: bench.theirs(qtype, six, bench.mlx_gptq)
    if qtype.name == "4bit-g64":
        yield "… mlx-lm dynamic_quant", lambda: bench.dynamic_quant(qtype, six, original)
    if qtype.name in autoround.SCHEMES and autoround.installed():
        yield "… AutoRound", lambda: bench.auto_round(qtype, six)
    yield "… ours, full", lambda: bench.ours(qtype, six, "full")
    if learning is None:
        return
    for rate in dwq.RATES if learning.ours else dwq.RATES[-1:]:
        yield (
            f"… mlx-lm DWQ, rate {rate:g}",
            lambda rate=rate: dwq.rounded(original, qtype, six, learning.tokens, rate),
        )
    if learning.ours:
        yield "… ours, full, tuned", lambda: bench.tuned(qtype, six, learning.tokens)


def learning_of(
    checkpoint: Checkpoint, documents: Sequence[Document], asked: argparse.Namespace
) -> Learning | None:
    """Take the text that something learns from, if anything does."""
    count = asked.tune or asked.dwq
    if not count:
        return None
    apart = distill.DEFAULT_SCHEDULE.set_apart(count)
    search, encode = corpus.bundled("search"), encoder(checkpoint)
    tokens = tuning_windows(documents, search, encode, apart, count, WINDOW)
    return Learning(tokens, bool(asked.tune))


def main() -> None:
    """Print a few lines for each type."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tune", type=int, default=0, metavar="N")
    parser.add_argument("--dwq", type=int, default=0, metavar="N")
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, metavar="N")
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("types", nargs="*", default=[*qtypes.names("gguf"), *qtypes.names("mlx")])
    asked = parser.parse_args()
    if not autoround.installed():
        print("no lines of AutoRound, which is not installed: pip install auto-round")
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = open_checkpoint(asked.model)
        documents, _ = calibration_documents(None)
        held_out, _ = held_out_windows(
            held_out_documents(asked.text), documents, encoder(checkpoint), asked.held_out, WINDOW
        )
        text, methods = (held_out.tokens, held_out.owners), ["full"] if asked.equal else METHODS
        bench = Bench(checkpoint, Path(directory), documents, text, methods)
        closing = ClosingTeacher(bench.teacher, held_out.unlike)
        original = None
        if any(name in qtypes.names("mlx") for name in asked.types):
            original = unquantized(checkpoint, Path(directory) / "original")
        learning = learning_of(checkpoint, documents, asked)
        for name in dict.fromkeys(asked.types):
            qtype = qtypes.get(name)
            if name in ("BF16", "F32"):
                continue
            print(f"{name} ({qtype.bits:.4g} bits)")
            first = None
            for label, weights in lines(bench, qtype, original, learning, asked.sequential):
                started = time.monotonic()
                made = weights()
                seconds = time.monotonic() - started
                kinds = closing.figures(bench.measured(made), "torch").kinds
                found = {kind: figures.kl for kind, figures in kinds.items()}
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
