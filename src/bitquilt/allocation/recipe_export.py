"""A mix in the forms that other quantizers take.

Sources: ggml-org/llama.cpp, tools/quantize/quantize.cpp (``parse_tensor_type``: a lower-case regex,
``=``, the name of a ggml type, one a line) and src/llama-quant.cpp (``std::regex_search`` in the
tensor's name); ikawrakow/ik_llama.cpp, the same with commas (``--custom-q``), where the first that
matches wins; ml-explore/mlx-lm, mlx_lm/utils.py (``quantize_model``: ``quant_predicate`` answers
with a module's parameters, or False).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.qtypes.qtype import Allocation
from bitquilt.targets import GGUF, MLX, Target
from bitquilt.targets.mlx.layout import quantization_entry


@dataclass(frozen=True, kw_only=True)
class RecipeForm:
    """What another quantizer takes a mix as."""

    target: Target
    write: Callable[[Allocation], str]
    """The mix, by the names of the target's files, as text."""
    use: str
    """How the other tool is told; ``FILE`` stands for the text's file."""


def _regex(name: str) -> str:
    """Match a tensor's name and no other, in lower case as llama-quantize makes it anyway."""
    return f"^{re.escape(name.lower())}\\.weight$"


def _lines(allocation: Allocation) -> str:
    return "".join(f"{_regex(name)}={qtype.lower()}\n" for name, qtype in allocation.items())


def _custom_q(allocation: Allocation) -> str:
    return ",".join(f"{_regex(name)}={qtype.lower()}" for name, qtype in allocation.items()) + "\n"


def _predicate(allocation: Allocation) -> str:
    entries = {name: quantization_entry(qtypes.get(qtype)) for name, qtype in allocation.items()}
    return json.dumps(entries, indent=1) + "\n"


FORMS: Mapping[str, RecipeForm] = {
    "tensor-type-file": RecipeForm(
        target=GGUF,
        write=_lines,
        use="llama-quantize --tensor-type-file FILE model-BF16.gguf out.gguf Q8_0",
    ),
    "custom-q": RecipeForm(
        target=GGUF,
        write=_custom_q,
        use='llama-quantize --custom-q "$(cat FILE)" model-BF16.gguf out.gguf Q8_0',
    ),
    "mlx-lm": RecipeForm(
        target=MLX,
        write=_predicate,
        use="mlx_lm.convert(..., quantize=True, quant_predicate=lambda path, *_: entries[path]), "
        "where entries is what FILE holds",
    ),
}
"""What ``bitquilt recipe export --as`` offers."""


def exported(allocation: Allocation, form: str) -> str:
    """Write a mix in a form of :data:`FORMS`.

    Raises:
        UserError: there is no such form.
    """
    if form not in FORMS:
        raise UserError(f"{form} is not a form of a recipe; choose {', '.join(FORMS)}")
    return FORMS[form].write(allocation)
