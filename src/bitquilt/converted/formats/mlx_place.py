"""Where the MLX base of a model is, and whether its tokens are the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bitquilt.bases.importance import require_class
from bitquilt.bases.mlx_base import KEPT_BY_MLX_LM, QUANTIZABLE, convert_to_mlx, mlx_dtype
from bitquilt.bases.plain_checkpoint import room_to_convert
from bitquilt.bases.room import refuse_unread_weights, require_memory
from bitquilt.errors import UserError
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.resolve import resolve
from bitquilt.models.tokenizer import load_tokenizer, require_vocabulary
from bitquilt.runtime.files import read_json, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import base_name, tokenizer_of
from bitquilt.targets import MLX
from bitquilt.targets.mlx.layout import has_wrapper
from bitquilt.targets.mlx.vision import VISION_FILE, write_vision_tower
from bitquilt.targets.same_tokens import OwnTokens, compare_tokens

_SHORT = {"bfloat16": "BF16", "float16": "F16"}


def mlx_base_of(model: str | Path, output: Path, progress: Progress) -> tuple[Path, Path]:
    """Return a model's directory and its MLX base, which is converted if it is not there.

    Args:
        model: hub id or Hugging Face directory.
        output: where the base goes; one that is newer than the weights is used again.
        progress: told what goes on.

    Raises:
        UserError: there is no such model, memory is too small, or mlx-lm does not know it.
    """
    directory = resolve(str(model))
    if not directory.is_dir():
        raise UserError(
            f"{model} is not a Hugging Face directory, which mlx-lm converts; give a directory or "
            "a hub id"
        )
    refuse_unread_weights(directory)
    require_class(directory)
    require_vocabulary(directory)
    require_memory(directory)
    short = _SHORT[mlx_dtype(directory)]
    path = output / f"{base_name(model, directory)}-{short}{MLX.suffix}"
    weights = safetensors.files(directory)
    made = path / QUANTIZABLE
    newest = max(file.stat().st_mtime for file in weights)
    if made.is_file() and made.stat().st_mtime > newest:
        progress.say(f"{path} is newer than the model, and is used again")
        _add_vision_tower(directory, path, progress)
        return directory, path
    if path.exists():
        raise UserError(f"{path} is in the way of the converted model; move it, or give another -o")
    require_room(output, room_to_convert(directory, KEPT_BY_MLX_LM))
    with progress.stage(f"Converting to {path.name}", 1, "converting"):
        convert_to_mlx(directory, path, progress.say)
        _add_vision_tower(directory, path, progress)
        progress.advance()
    return directory, path


def _add_vision_tower(directory: Path, path: Path, progress: Progress) -> None:
    """Put what sees of a model into its base, which mlx-lm leaves out; files made of it have it."""
    config = read_json(directory / "config.json")
    if not (path / VISION_FILE).exists():
        write_vision_tower(directory, config, path)
    if config.get("vision_config") and not has_wrapper(config):
        progress.say(MLX.blind_note(directory.name))


def refuse_other_tokens_in_mlx(path: Path, directory: Path) -> list[str]:
    """Compare the tokens of a model with those of its MLX base.

    Returns:
        Sentences about text that mlx-lm reads otherwise without harm.

    Raises:
        UserError: mlx-lm would read other tokens.
    """
    place, template = tokenizer_of(directory)
    own = OwnTokens(name=directory.name, tokenizer=load_tokenizer(place), template=template)
    theirs: Any = AutoTokenizer.from_pretrained(path)
    return compare_tokens(
        own,
        lambda text, special: theirs.encode(text, add_special_tokens=special),
        MLX.engine,
        "give --to=gguf",
    )
