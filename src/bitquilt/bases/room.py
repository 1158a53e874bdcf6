"""Whether this machine's memory has room for a model as transformers loads it."""

from __future__ import annotations

import re
from pathlib import Path

from bitquilt.bases.plain_checkpoint import PlainTensors
from bitquilt.errors import UserError
from bitquilt.models.canonical import quantization_method
from bitquilt.models.sources.quantized import DEQUANTIZED_STACKS, quantization_of
from bitquilt.runtime.device import gpu_memory
from bitquilt.runtime.files import read_json
from bitquilt.runtime.load import memory_of_machine
from bitquilt.runtime.sizes import human

GPU_ROOM = 8 << 30
"""Bytes of a GPU beside the weights: moments, float32 numbers of a few modules, activations."""
BY_LLAMA_CPP = (
    "convert it with llama.cpp, make an importance matrix of that file with llama-imatrix, and "
    "give it with --imatrix=FILE"
)
"""What to do about a model that cannot be run here."""
_HALF = ("BF16", "F16")
_ONE_OF_MANY = re.compile(r"\bexperts\.\d+\.")


def refuse_unread_weights(directory: Path) -> None:
    """Refuse weights that are quantized in a way that is not known here.

    Args:
        directory: of a Hugging Face model; its config is read.

    Raises:
        UserError: they are.
    """
    stated = quantization_of(read_json(directory / "config.json"))
    if stated is not None and (method := quantization_method(stated)) not in DEQUANTIZED_STACKS:
        raise UserError(
            f"the weights of {directory} are quantized already, by {method}, and bitquilt reads "
            f"{', '.join(DEQUANTIZED_STACKS)} only; give the original checkpoint"
        )


def require_memory(directory: Path) -> None:
    """Refuse a model that memory cannot hold, before it is converted or loaded.

    On a CPU weights stay in their files, but for those that are dequantized. And where a checkpoint
    has every expert by itself, in float32, transformers puts those of a layer together, in memory;
    in 16 bits they are put together when they are read. A GPU has all other weights at once.

    Args:
        directory: of a Hugging Face model.

    Raises:
        UserError: memory is too small, or the directory has no model's weights.
    """
    tensors = PlainTensors(directory)
    memory, of_gpu = memory_of_machine(), gpu_memory()
    weights = tensors.plain_bytes
    stacked = [name for name in tensors if _ONE_OF_MANY.search(name)]
    experts = sum(tensors.size(name) for name in stacked if tensors.kind(name) == "F32")
    at_once = weights - sum(tensors.size(one) for one in stacked if tensors.kind(one) in _HALF)
    if tensors.decoded_bytes > memory:
        raise UserError(
            f"the weights of {directory} take {human(tensors.decoded_bytes)} of memory when they "
            f"are dequantized, and this machine has {human(memory)}; {BY_LLAMA_CPP}"
        )
    if experts > memory:
        raise UserError(
            f"transformers puts the experts of {directory} together in memory, since they are "
            f"float32, which takes {human(experts)}, and this machine has {human(memory)}; "
            f"{BY_LLAMA_CPP}"
        )
    if of_gpu and at_once + GPU_ROOM > of_gpu:
        raise UserError(
            f"{directory} has {human(at_once)} of weights that the GPU has to hold at once, beside "
            f"{human(GPU_ROOM)} of other numbers, and it has {human(of_gpu)}; give --device=cpu"
        )
