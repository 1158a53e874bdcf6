"""What helps, by verb, with a model of a family that bitquilt does not know itself."""

from __future__ import annotations

from bitquilt.errors import UnknownFamilyError

_SOURCE = "give the Hugging Face directory or hub id that the files were made from"
_RUN = "give a GGUF file or an MLX directory of it, which `bitquilt quantize MODEL --bits 8` makes"
ADVICE = {
    "quantize": "for such a GGUF file give --imatrix=FILE too, or quantize the Hugging Face "
    "directory that it was made from, and give the file with --base=FILE",
    "plan": "give its Hugging Face directory or hub id, with its weights; of a GGUF file, "
    "`bitquilt plan FILE --imatrix IMATRIX --bits 4.5` tells the types",
    "search": "`bitquilt quantize` chooses the types of such a model itself, and `bitquilt recipe "
    "from` takes them from its file",
    "eval": _SOURCE,
    "compare": f"leave out --against, or {_SOURCE}",
    "run": _RUN,
    "chat": _RUN,
    "serve": _RUN,
    "tasks": _RUN,
    "pair": _RUN,
    "bench": _RUN,
    "recipe": "leave out --for: a recipe names the matrices of the file that it is taken from",
    "card": _SOURCE,
    "publish": _SOURCE,
    "trim": "quantize the model as it is",
}
"""Verb → the end of its sentence; the error has its own for the others."""


def advised(error: UnknownFamilyError, verb: str | None) -> str:
    """Return the sentence of an error for a verb."""
    found = ADVICE.get(verb or "")
    return error.sentence if found is None else f"{error.cause}; {found}"
