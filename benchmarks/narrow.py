"""Models whose rows are no multiple of 256, with Q2_0 and MXFP4 among the types and without.

    python benchmarks/narrow.py FILE.gguf [BITS…]

Prints bytes, bits and mean KL with its 95 % interval on both kinds of text, of files that the
knapsack chose. The sources at hand are quantized themselves, and types that hold their levels would
win by that alone, so each weight first moves by up to half a step of its source, at random; what
comes out is the original that files are measured against. Text is short: TEXT says how much.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from lib.shaken import shaken

from bitquilt import UserError, qtypes, quantize
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.config import SearchConfig
from bitquilt.targets import GGUF

TEXT = TextBudget(
    calibration=12, held_out=10, tuning=0, interactions=8, search=8, selection=8, races=0
)
NEWER = frozenset({"Q2_0", "MXFP4"})
WITHOUT = {32: GGUF.superseded[32] | NEWER}


def main() -> None:
    """Print one line per size, choice of types and kind of text."""
    source = Path(sys.argv[1])
    sizes = [float(bits) for bits in sys.argv[2:]] or [3.0, 3.5, 4.0, 4.75]
    print(f"{'types':8} {'asked':>5} {'bytes':>12} {'bits':>6}  {'text':6}  KL")
    with tempfile.TemporaryDirectory() as directory:
        original = shaken(source, Path(directory))
        for bits in sizes:
            for name, superseded in (("with", {}), ("without", WITHOUT)):
                with patch.dict(GGUF.superseded, superseded):  # type: ignore[arg-type]
                    measure(original, bits, name)


def measure(original: Path, bits: float, name: str) -> None:
    """Print what one file loses."""
    try:
        made = quantize(
            original,
            bits=bits,
            output=original.parent / "files",
            work_dir=original.parent / "work",
            search=SearchConfig(method="knapsack"),
            text_budget=TEXT,
            engine_check=False,
        ).outputs[0]
    except UserError as error:
        print(f"{name:8} {bits:5g} {error}", flush=True)
        return
    types = sorted(set(made.allocation.values()), key=lambda one: qtypes.get(one).bits)
    for kind, found in made.figures.kinds.items():
        about = f"{name:8} {bits:5g} {made.nbytes:12,} {made.bits:6.3f}"
        print(f"{about}  {kind:6}  {found.kl!s:28} {made.source}, {' '.join(types)}", flush=True)


if __name__ == "__main__":
    main()
