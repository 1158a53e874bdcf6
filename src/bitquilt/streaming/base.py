"""The base of a model that bitquilt has no tables of, and its importance matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from bitquilt.bases.converter import (
    DEQUANTIZED_BY_LLAMA_CPP,
    ConverterError,
    base_type,
    convert,
    require_converter,
    require_known,
)
from bitquilt.bases.importance import BaseModel, base_importance, open_base, require_class
from bitquilt.bases.plain_checkpoint import room_to_convert
from bitquilt.bases.room import refuse_unread_weights, require_memory
from bitquilt.bases.served_base import can_be_served, end_served, serve_base
from bitquilt.bases.vision import write_tower_of
from bitquilt.calibration.text import (
    HeldOutText,
    calibration_documents,
    document_encoder,
    held_out_documents,
    held_out_windows,
    token_windows,
)
from bitquilt.calibration.text_budget import text_budget
from bitquilt.config import ImatrixConfig, QuantizeConfig
from bitquilt.errors import UserError
from bitquilt.gguf import SUFFIX
from bitquilt.gguf.imatrix import ImportanceMatrix
from bitquilt.models.canonical import has_tables, who_lacks_tables
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.hugging_face import chat_template
from bitquilt.models.sources.resolve import resolve, short_name
from bitquilt.models.sources.tokenizer_files import usable_tokenizer
from bitquilt.models.tokenizer import require_vocabulary
from bitquilt.runtime.device import gpu_memory
from bitquilt.runtime.files import has_room, read_json, require_room
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.trial import try_base
from bitquilt.targets import GGUF, Target

MOST_WINDOWS = 96
"""Windows of calibration text: they go through the whole model one by one, again for every part of
the moments, where a GPU's budget counts on blocks that read hundreds at once."""


ROOM_BESIDE = 0.5
"""Of a base's bytes, which the files that are made of it and the work take on the disk, about."""


def needs_base(model: str | Path) -> bool:
    """Say whether a model is a Hugging Face one whose architecture bitquilt has no tables of.

    Raises:
        UserError: there is no such model.
    """
    path = resolve(str(model), weights=False)
    return path.is_dir() and not has_tables(read_json(path / "config.json"))


def base_imatrix(model: str | Path, config: ImatrixConfig, progress: Progress) -> ImportanceMatrix:
    """Run calibration text through a model that has no tables, for the matrices of its base.

    Raises:
        UserError: bad input, or no converter.
    """
    beside = Path(config.output).parent
    directory, path = base_of(model, config.base, beside, progress)
    try:
        return base_importance_of(open_base(path, directory, progress), directory, config, progress)
    finally:
        end_served(path)


def base_name(model: str | Path, directory: Path) -> str:
    """Return the name that a model's files begin with."""
    return short_name(str(model), directory)


def base_of(
    model: str | Path,
    given: str | Path | None,
    output: Path,
    progress: Progress,
    *,
    whole: bool = True,
) -> tuple[Path, Path]:
    """Return a model's directory and its base, which is converted if it is not there.

    Where a header is enough, or the disk has no room for more, it is a header alone, whose numbers
    the converter gives until :func:`bitquilt.bases.served_base.end_served`.

    Args:
        model: hub id or Hugging Face directory.
        given: the base, if there is one.
        output: where it goes if there is none; one that is newer than the weights is used again.
        progress: told what goes on.
        whole: whether more than the header is wanted.

    Raises:
        UserError: there is no such model, file or converter, memory is too small, or it failed.
    """
    directory = resolve(str(model), weights=False)
    if not directory.is_dir():
        raise UserError(
            f"{model} is not a Hugging Face directory, and only such a model has a base; give its "
            "directory or hub id"
        )
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"{path} does not exist; give the file that the converter wrote")
    else:
        refuse_unread_weights(directory)
        require_class(directory)
        place = _place_of(model, directory, output)
        if place is None or not _is_newer(place, directory):
            # before the download
            require_converter(who_lacks_tables(read_json(directory / "config.json")), place)
        if place is None:
            require_known(directory)
    directory = resolve(str(model))
    require_vocabulary(directory)
    require_memory(directory)
    if given is not None:
        return directory, path
    path = output / _file_name(model, directory)
    if _is_newer(path, directory):
        progress.say(f"{path} is newer than the model, and is used again")
        return directory, path
    return directory, _converted(directory, path, progress, whole)


def _converted(directory: Path, path: Path, progress: Progress, whole: bool) -> Path:
    """Write a base, or its header alone, and return which it is."""
    output, room = path.parent, room_to_convert(directory, DEQUANTIZED_BY_LLAMA_CPP)
    fits = has_room(output, round(room * (1 + ROOM_BESIDE)))
    if not (whole and fits) and can_be_served(directory):
        try:
            header = _served(directory, path, progress)
        except ConverterError:  # it may do what follows
            pass
        else:
            if whole:
                progress.say(
                    f"{output} has too little room for {path.name} ({room:,} bytes) beside the "
                    "result, so it is not written: llama.cpp's converter gives each matrix when it "
                    "is read, which takes longer"
                )
            return header
    require_room(output, room)
    with progress.stage(f"Converting to {path.name}", 1, "converting"):
        convert(directory, path, progress.say)
        progress.advance()
    return path


def _served(directory: Path, base: Path, progress: Progress) -> Path:
    """Let the converter write a header beside the place of a base, and give its numbers."""
    header = base.with_name(f".{base.stem}.header{base.suffix}.part")  # `clean` knows such names
    with progress.stage(f"Converting the header of {base.name}", 1, "converting"):
        serve_base(directory, header)
        progress.advance()
    return header


def _file_name(model: str | Path, directory: Path) -> str:
    """Name the base of a model whose weights are here."""
    return f"{base_name(model, directory)}-{base_type(directory).upper()}{SUFFIX}"


def _place_of(model: str | Path, directory: Path, output: Path) -> Path | None:
    """Where a model's base goes; None where its weights are not here yet."""
    return output / _file_name(model, directory) if safetensors.files(directory) else None


def _is_newer(base: Path, directory: Path) -> bool:
    """Whether a base is there, and newer than the model's weights."""
    newest = max(file.stat().st_mtime for file in safetensors.files(directory))
    return base.is_file() and base.stat().st_mtime > newest


def write_base_vision(
    target: Target, model: str | Path, directory: Path, output: Path, progress: Progress
) -> None:
    """Write what sees of a model beside the files of a format, where it has a file for it."""
    name = target.vision_file(base_name(model, directory))
    if name is not None:
        write_tower_of(directory, tokenizer_of(directory)[0], output / name, progress.say)


def tokenizer_of(directory: Path) -> tuple[Path, str | None]:
    """Return the directory of a model's tokenizer, and its chat template.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    place, _ = usable_tokenizer(directory)
    template, _ = chat_template(place)
    return place, template


def base_importance_of(
    base: BaseModel, directory: Path, config: QuantizeConfig | ImatrixConfig, progress: Progress
) -> ImportanceMatrix:
    """Run calibration text through a base's model, and say what has no partner.

    Raises:
        UserError: the text or the tokenizer does not serve, or llama.cpp does not run the base.
    """
    if base.alone:
        few = ", ".join(base.alone[:3])
        progress.say(
            f"{len(base.alone)} of {len(base.partners)} matrices of {base.path.name} match no "
            f"parameter of the model, so their importance is unknown: {few}"
        )
    tokens = BaseText(base.model, directory, config).calibration()
    if isinstance(config, QuantizeConfig) and config.engine_check:
        try_base(base.path, GGUF, base.model, tokens[0], progress)
    with progress.stage("Reading calibration text", len(tokens), "importance"):
        return base_importance(base, tokens, [dataset_name(config)], progress)


class BaseText:
    """Text for a model that has no tables, as its tokens."""

    def __init__(
        self, model: nn.Module, directory: Path, config: QuantizeConfig | ImatrixConfig
    ) -> None:
        """Read documents and tokenizer.

        Args:
            model: transformers'.
            directory: of it.
            config: names a user's text, and may say how much is read.

        Raises:
            UserError: one of them cannot be read.
        """
        self._held_out = config.held_out if isinstance(config, QuantizeConfig) else None
        self._documents, _ = calibration_documents(config.calibration, self._held_out)
        place, template = tokenizer_of(directory)
        embeddings = len(model.get_input_embeddings().weight)  # type: ignore[operator]
        self._encode = document_encoder(directory.name, place, template, embeddings)
        weights = sum(one.numel() for one in model.parameters())
        budget = text_budget(weights, 1, gpu_memory())
        most = min(budget.calibration, MOST_WINDOWS)
        self.budget = config.text_budget or replace(budget, calibration=most)

    def calibration(self) -> Tensor:
        """Return the calibration text, int64 [N, L].

        Raises:
            UserError: there is too little.
        """
        count, length = self.budget.calibration, self.budget.window
        return token_windows(self._documents, self._encode, count, length)

    def closing(self) -> tuple[HeldOutText, str]:
        """Return the text that files are measured on, and why there is none of a kind.

        Raises:
            UserError: there is too little of both kinds.
        """
        count, length = self.budget.held_out, self.budget.window
        documents = held_out_documents(self._held_out)
        return held_out_windows(documents, self._documents, self._encode, count, length)


def dataset_name(config: QuantizeConfig | ImatrixConfig) -> str:
    """Return what an importance matrix calls the calibration text."""
    return "bitquilt" if config.calibration is None else Path(config.calibration).name
