"""The vision tower of a model that also sees: a GGUF file of its own, by llama.cpp's converter.

llama.cpp, LM Studio and Ollama read it beside the language model's file, by a name that begins with
``mmproj``. Its weights stay as they are: a tower is small, and nothing here measures what it sees.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitquilt.bases.converter import base_type, find_converter, run_converter_script
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.sources.hugging_face import VISION_PARTS
from bitquilt.runtime.files import read_json

_HALF, _WHOLE = 2, 4


def write_vision(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's vision tower and projector as the file that llama.cpp calls mmproj.

    Args:
        checkpoint: one whose weights have a vision tower.
        path: of the file; whole or not there.

    Raises:
        UserError: there is no converter, or it failed; the sentence says why.
    """
    source = checkpoint.vision
    assert source is not None, "the checkpoint has no vision tower"
    _write_tower(f"{checkpoint.name} has a vision tower", source, checkpoint.tokenizer_dir, path)


def write_vision_beside(
    checkpoint: Checkpoint, name: str | None, output: Path, say: Callable[[str], None]
) -> Path | None:
    """Write what sees of a model beside its files, where it can be.

    The language model is worth its file without it: a converter that fails is told.

    Args:
        checkpoint: of any model.
        name: of the file; None where no format has one.
        output: the directory of the other files.
        say: told why it is not written.

    Returns:
        the file, if there is one now.
    """
    if name is None or checkpoint.vision is None or find_converter() is None:
        return None
    return _tried(lambda path: write_vision(checkpoint, path), output / name, say)


def write_tower_of(
    directory: Path, tokenizer: Path, path: Path, say: Callable[[str], None]
) -> Path | None:
    """Write what sees of a model that bitquilt has no tables of, if its config speaks of it.

    Args:
        directory: of a Hugging Face model.
        tokenizer: the directory of its tokenizer.
        path: of the file.
        say: told of the file, or why it is not written.

    Returns:
        the file, if there is one now.
    """
    if not read_json(directory / "config.json").get("vision_config"):
        return None
    what = f"{directory.name} has a vision tower"
    made = _tried(lambda path: _write_tower(what, directory, tokenizer, path), path, say)
    if made is not None:
        say(f"{made} is the vision tower, not quantized")
    return made


def _tried(write: Callable[[Path], None], path: Path, say: Callable[[str], None]) -> Path | None:
    try:
        write(path)
    except UserError as error:
        say(f"The vision tower is not written: {error.sentence}")
        return None
    return path


def _write_tower(what: str, source: Path, tokenizer: Path | None, path: Path) -> None:
    """Run the converter on a model's directory, with the files of its tokenizer."""
    arguments = ["--outtype", base_type(source), "--mmproj"]
    if tokenizer is None or tokenizer == source:
        run_converter_script(what, source, path, arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        # the converter looks up tokens of images in a tokenizer.json, which this source lacks
        staged = Path(scratch) / source.name
        staged.mkdir()
        try:
            for file in {**_files(source), **_files(tokenizer)}.values():
                (staged / file.name).symlink_to(file.resolve())
        except OSError as error:
            raise UserError(
                f"{source} has no tokenizer.json, and links to its files cannot be made "
                f"({error.strerror}); save its tokenizer there with transformers"
            ) from error
        run_converter_script(what, staged, path, arguments)


def _files(directory: Path) -> dict[str, Path]:
    return {file.name: file for file in directory.iterdir() if file.is_file()}


def vision_bytes(config: dict[str, Any]) -> int:
    """Estimate the bytes of the file that :func:`write_vision` writes, from a config alone.

    Matrices are taken to be in two bytes and all else in four; the converter keeps a few matrices
    in four, too.

    Args:
        config: as published, of a model that also sees.

    Raises:
        UserError: as :func:`vision_shapes`.
    """
    shapes = vision_shapes(config).values()
    return sum(math.prod(shape) * (_HALF if len(shape) == 2 else _WHOLE) for shape in shapes)


def vision_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the vision tower and the projector by their names, from a config alone.

    Args:
        config: as published, of a model that also sees.

    Raises:
        UserError: transformers does not know the model, or a field of its config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    alone = copy.deepcopy(config)
    text = alone.get("text_config")
    if isinstance(text, dict):
        text.pop("layer_types", None)
        text["num_hidden_layers"] = 1  # of no concern here
    try:
        with torch.device("meta"):
            known = AutoConfig.for_model(alone.pop("model_type"), **alone)
            model = AutoModelForImageTextToText.from_config(known)
    except Exception as error:  # whatever the model's own code raises
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"transformers cannot make a vision tower of config.json ({reason}); download it again"
        ) from error
    return {
        name.removeprefix("model."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if any(part in name for part in VISION_PARTS)
    }
