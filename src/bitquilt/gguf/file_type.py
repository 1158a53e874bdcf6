"""``general.file_type``: what llama.cpp calls a file whose tensors have several types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from gguf import LlamaFileType

from bitquilt.gguf.container import Metadata

FILE_TYPE = "general.file_type"
RECIPE = "bitquilt.recipe"
"""What bitquilt's files have; their file type is that of most weights, which names no mix."""
MIX = "a mix of types"
"""What a file of bitquilt's own with several types is called."""

_REPLACED = (FILE_TYPE, "general.quantization_version", "general.alignment")
_DROPPED_PREFIXES = ("split.", "quantize.", "bitquilt.")
"""About the source's own file or how it was quantized, untrue of the new one."""

_NAMES = {
    "F32": "ALL_F32",
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
    "MXFP4": "MOSTLY_MXFP4_MOE",
}
"""Those not called ``MOSTLY_`` and the type's name."""
_NEWER = {"Q2_0": 41}
"""Those that gguf-py does not know yet (llama.h, enum llama_ftype)."""


def file_type_of(qtype: str) -> int:
    """Give the file type of a file most of whose weights are on one type."""
    if qtype in _NEWER:
        return _NEWER[qtype]
    return int(LlamaFileType[_NAMES.get(qtype, f"MOSTLY_{qtype}")])


def file_type_name(metadata: Mapping[str, Any], qtypes: Iterable[str]) -> str:
    """Name the file type as people know it: ``Q4_K_M``.

    Args:
        metadata: of the file, which says it as a rule. Of a file of bitquilt's own with several
            types it says only which is on most weights; that is a mix.
        qtypes: the types of its matrices; where the metadata says nothing, that of most of them
            is named: ``mostly Q4_K``.
    """
    counts = Counter(qtypes)
    if RECIPE in metadata and len(counts) > 1:
        return MIX
    with suppress(KeyError, ValueError):
        stated = int(metadata[FILE_TYPE]) & ~LlamaFileType.GUESSED
        if stated in _NEWER.values():
            return next(name for name, number in _NEWER.items() if number == stated)
        name: str = LlamaFileType(stated).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    ((most, _),) = counts.most_common(1)
    return f"mostly {most}"


def without_file_facts(pairs: Metadata, *, parted: bool = False) -> Metadata:
    """Return what still holds of a header's pairs in a file that is quantized otherwise.

    Args:
        pairs: of the source.
        parted: whether the new file is in the same parts.
    """
    dropped = _DROPPED_PREFIXES[parted:]
    return {
        key: value
        for key, value in pairs.items()
        if key not in _REPLACED and not key.startswith(dropped)
    }
