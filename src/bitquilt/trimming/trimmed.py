"""The trimmed model that ``quantize --trim`` goes on with: planned, made, or used again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint, Finding
from bitquilt.models.sources.hugging_face import TRIMMED
from bitquilt.models.sources.tensors import bytes_by_type
from bitquilt.runtime.files import atomic_write, read_json
from bitquilt.runtime.leftovers import MADE_ALONG
from bitquilt.runtime.progress import Progress
from bitquilt.trimming.checkpoint import ASKED
from bitquilt.trimming.config import LANGUAGES, TrimConfig, trim_config
from bitquilt.trimming.ranking import text_to_keep
from bitquilt.trimming.trim import choice_settings, likely_cut, trim_vocabulary


def trimmed_model(
    model: str | Path, words: Sequence[str], output: Path, progress: Progress
) -> Path:
    """Trim a model into the output directory, or find it there from an earlier run.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        words: languages, texts, and a number of tokens, in any order.
        output: has the trimmed model, under the model's name with these words.
        progress: told what goes on.

    Returns:
        the directory of the trimmed model.

    Raises:
        UserError: bad input, a tokenizer that cannot be cut, or a place with other files in it.
    """
    checkpoint = open_checkpoint(model)
    config = _config(checkpoint, words, output)
    path = Path(config.output)
    if _is_there(checkpoint, config):
        progress.say(f"{path} is there from an earlier run, and is used again")
        return path
    made = trim_vocabulary(model, config, progress=progress)
    _list_files(path)
    for one in made.tokens_per_byte:
        progress.say(
            f"{path.name} needs {one.after:.4f} tokens per byte of {one.text}; the original needs "
            f"{one.before:.4f}"
        )
    return path


@contextmanager
def planned_model(model: str | Path, words: Sequence[str], output: Path) -> Iterator[Checkpoint]:
    """Give a trimmed model as far as a plan needs it: everything but the weights.

    It holds in the ``with`` block. Where no earlier run has made it, its tokens are as many as
    :func:`trimmed_model` will keep, and not quite the same ones.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        words: languages, texts, and a number of tokens, in any order.
        output: the directory that the trimmed model goes to.

    Raises:
        UserError: bad input, or a tokenizer that cannot be cut.
    """
    checkpoint = open_checkpoint(model, weights=False)
    config = _config(checkpoint, words, output)
    if _is_there(checkpoint, config):
        yield open_checkpoint(config.output)
        return
    cut = likely_cut(checkpoint, config)
    said = (
        f"{len(cut.kept):,} of the {checkpoint.matrices[EMBEDDING][0]:,} tokens are kept. "
        "`bitquilt quantize` will choose them when it trims the model, so the bytes of the "
        "tokenizer are an estimate here. The estimated time does not include the trimming"
    )
    with TemporaryDirectory() as folder:
        directory = Path(folder) / Path(config.output).name
        cut.write_description(directory)
        described = open_checkpoint(directory, weights=False)
        yield replace(
            described,
            findings=(*described.findings, Finding("trimming", said)),
            sampler=checkpoint.sampler,
            source_bytes=cut.nbytes,
            source_types=bytes_by_type(cut.dtypes, cut.nbytes),
            tensor_types=cut.dtypes if checkpoint.tensor_types else {},
        )


def _list_files(path: Path) -> None:
    """Note in a trimmed model which files it has, so that `bitquilt clean` can remove them."""
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    said = read_json(path / TRIMMED)
    with atomic_write(path / TRIMMED) as part:
        part.write_text(json.dumps({**said, MADE_ALONG: files}) + "\n", encoding="utf-8")


def _config(checkpoint: Checkpoint, words: Sequence[str], output: Path) -> TrimConfig:
    """Give what is asked of ``trim``, with the place that is named by the words."""
    names = [word if word in LANGUAGES else Path(word).stem for word in words]
    return trim_config(words, output / "-".join([checkpoint.name, *names]))


def _is_there(checkpoint: Checkpoint, config: TrimConfig) -> bool:
    """Tell whether an earlier run has made the trimmed model."""
    asked = choice_settings(checkpoint, text_to_keep(config), config.size)
    return _asked(Path(config.output)) == asked


def _asked(path: Path) -> object:
    """Read what a trimmed model was asked for; None where there is none that can be read."""
    try:
        return json.loads((path / TRIMMED).read_text(encoding="utf-8")).get(ASKED)
    except (OSError, ValueError, AttributeError):
        return None
