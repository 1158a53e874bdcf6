"""The trimmed model that ``quantize --trim`` goes on with: made, or used again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bitquilt.models import open_checkpoint
from bitquilt.models.sources.hugging_face import TRIMMED
from bitquilt.runtime.progress import Progress
from bitquilt.trimming.checkpoint import ASKED
from bitquilt.trimming.config import LANGUAGES, trim_config
from bitquilt.trimming.ranking import text_to_keep
from bitquilt.trimming.trim import choice_settings, trim_vocabulary


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
    names = [word if word in LANGUAGES else Path(word).stem for word in words]
    path = output / "-".join([checkpoint.name, *names])
    config = trim_config(words, path)
    text = text_to_keep(config)
    if _asked(path) == choice_settings(checkpoint, text, config.size):
        progress.say(f"{path} is there from an earlier run, and is used again")
        return path
    made = trim_vocabulary(model, config, progress=progress)
    for one in made.tokens_per_byte:
        progress.say(
            f"{path.name} takes {one.after:.4f} tokens per byte of {one.text}, the original "
            f"{one.before:.4f}"
        )
    return path


def _asked(path: Path) -> object:
    """Read what a trimmed model was asked for; None where there is none that can be read."""
    try:
        return json.loads((path / TRIMMED).read_text(encoding="utf-8")).get(ASKED)
    except (OSError, ValueError, AttributeError):
        return None
