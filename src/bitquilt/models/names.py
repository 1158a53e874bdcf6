"""Module paths of a decoder, in Hugging Face's words: ``model.layers.3.mlp.up_proj``."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(?:layers|blk)\.(\d+)\.")
"""What llama.cpp calls a block is there, too: of other families a recipe has the file's names."""


def layer_of(name: str) -> int | None:
    """The number of the block that a tensor or module is in; None for one outside the blocks."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def kind_of(module: str) -> str:
    """What a matrix is whichever block it is in: the last part of its path, e.g. ``q_proj``."""
    return module.rsplit(".", 1)[-1]


def block_path(index: int) -> str:
    """The module path of a block, with which the names of its tensors start up to a dot."""
    return f"model.layers.{index}"


def in_block(module: str) -> str:
    """The path of a module within its block, e.g. ``mlp.down_proj``; its own outside the blocks."""
    return _LAYER.split(module, 1)[-1]
