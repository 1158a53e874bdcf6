"""What the trimming of a vocabulary can be asked for; cheap to import, for the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.runtime.compute import device_option, threads_option
from bitquilt.runtime.near import suggestion
from bitquilt.runtime.options import Options, option

LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ja", "ko", "pt", "ru", "tr", "zh")
"""The languages that the bundled text has, besides its held-out text."""
_NUMBER = re.compile(r"(\d+)(k?)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TrimConfig(Options):
    """Which tokens of a vocabulary are kept, and where the smaller model goes."""

    output: str | Path = option(
        "The smaller model is written to this directory, as a Hugging Face checkpoint.",
        short="-o",
        metavar="DIR",
    )
    keep: Sequence[str | Path] = option(
        "The tokens that this text (.txt or .jsonl) needs are kept. The option can be repeated.",
        default=(),
        metavar="TEXT",
        many=True,
        repeated=True,
        reads="",
        text=True,
    )
    languages: Sequence[str] | None = option(
        "The tokens that bitquilt's bundled text needs in these languages, and in code, maths and "
        f"tables, are kept: {', '.join(LANGUAGES)}.",
        default=None,
        metavar="LANG,LANG…",
        many=True,
        choices=LANGUAGES,
    )
    tokens: str | None = option(
        "At most this many tokens are kept, like 64k (64,000). If the text needs more, its "
        "rarest tokens are removed. If it needs fewer, tokens that the model expects in similar "
        "text are kept too.  [default: those that the text needs]",
        default=None,
        metavar="N",
    )
    device: str = device_option()
    threads: int | None = threads_option()

    def __post_init__(self) -> None:
        """Refuse what keeps nothing.

        Raises:
            UserError: neither text nor languages are given, or the number of tokens is none.
        """
        super().__post_init__()
        if not self.keep and not self.languages:
            raise UserError(
                "which tokens should be kept? Give --keep with text like that which the model will "
                f"read, or --languages with some of {', '.join(LANGUAGES)}"
            )
        self.size  # noqa: B018 (refuses what is no number)

    @property
    def size(self) -> int | None:
        """The most tokens that are kept; None if the text decides.

        Raises:
            UserError: it is no whole number above zero.
        """
        if self.tokens is None:
            return None
        match = _NUMBER.fullmatch(self.tokens.strip())
        count = int(match[1]) * (1000 if match[2] else 1) if match else 0
        if count < 1:
            raise UserError(
                f"--tokens is {self.tokens!r}, which is not a number of tokens; write it like 64k "
                "or 32000"
            )
        return count


def trim_config(words: Sequence[str], output: str | Path) -> TrimConfig:
    """Give the config that ``--trim`` of ``quantize`` asks for.

    Args:
        words: languages, texts, and a number of tokens, in any order.
        output: the directory that the smaller model goes to.

    Raises:
        UserError: a word is none of the three, there are two numbers, or nothing says which tokens.
    """
    languages = [word for word in words if word in LANGUAGES]
    numbers = [word for word in words if _NUMBER.fullmatch(word)]
    texts = [word for word in words if word not in (*languages, *numbers)]
    for text in texts:
        if not Path(text).is_file():
            raise UserError(
                f"--trim names {text}, which is not a text that exists, a number of tokens or one "
                f"of the languages {', '.join(LANGUAGES)}{suggestion(Path(text))}; write it like "
                "en,64k"
            )
    if len(numbers) > 1:
        raise UserError(
            f"--trim has the numbers {' and '.join(numbers)}; give one number of tokens, as in "
            "en,64k"
        )
    if not languages and not texts:
        raise UserError(
            f"--trim={numbers[0]} says how many tokens are kept, but not which; name a language or "
            f"a text too, as in en,{numbers[0]}"
        )
    return TrimConfig(
        output=output,
        keep=texts,
        languages=languages or None,
        tokens=numbers[0] if numbers else None,
    )
