"""Options that several verbs share."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

import click

from bitquilt import rounding
from bitquilt.allocation import SCORES, SEARCH_METHODS
from bitquilt.runtime.files import nan_to_null


class Finite(click.FloatRange):
    """A range without infinities and NaN, which no comparison keeps out of click's."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See :class:`click.FloatRange`."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """What help says of the range; click would write ``x<=None`` where there is none."""
        unlimited = self.min is None and self.max is None
        return "" if unlimited else str(super()._describe_range())


MODEL = click.argument("model")
BITS = click.option(
    "--bits", type=float, help="Bits per weight over all weights, everything in the file counted."
)


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """Numbers with commas between them."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers like 3,3.5,4") from None


SEVERAL_BITS = click.option(
    "--bits",
    callback=_numbers,
    metavar="BITS[,BITS…]",
    help="Bits per weight over all weights, everything in the file counted; several make as many "
    "files.",
)
SIZE = click.option("--size", help="Or the size of the file, like 600MB or 1.5GiB.")
RECIPE = click.option(
    "--recipe",
    metavar="FILE|PRESET",
    help="A recipe file or a preset (Q4_K_M, 4bit-g64 …). With a budget, a file's pins hold.",
)
TO = click.option(
    "--to",
    type=click.Choice(["gguf", "mlx", "both"]),
    default="gguf",
    show_default=True,
    help="What to write.",
)
OUTPUT = click.option(
    "-o", "--output", default=".", show_default=True, help="Directory for what is written."
)
CALIBRATION = click.option(
    "--calibration", metavar="FILE", help="Text instead of the bundled one (.txt, .jsonl)."
)
WORK_DIR = click.option(
    "--work-dir",
    metavar="DIR",
    help="Where stages keep their results, so that the same command continues if stopped.  "
    "[default: <output>/<model>.work]",
)
ROUNDING = click.option(
    "--rounding",
    type=click.Choice(rounding.METHODS),
    default="full",
    show_default=True,
    help="How much is done for each matrix: round to the nearest level, add error feedback (GPTQ), "
    "or also descend over codes and refit scales.",
)


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """How to search for a mix; the command gets a ``how``."""

    @functools.wraps(command)
    def with_search(
        search: str,
        scores: str,
        search_tokens: int | None,
        search_time: float | None,
        seed: int,
        min_tokens_per_second: float | None,
        ray: str | None,
        **others: Any,
    ) -> None:
        from bitquilt.allocation.allocate import Search

        seconds = math.inf if search_time is None else search_time
        how = Search(search, scores, search_tokens, seconds, seed, min_tokens_per_second, ray)
        command(how=how, **others)

    return functools.reduce(lambda made, option: option(made), _SEARCH_OPTIONS, with_search)


_SEARCH_OPTIONS = (
    click.option(
        "--ray",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value="",
        help="Measure on the machines of a Ray cluster: the one at that address, the one that runs "
        "here, or a new one (extra ray).",
    ),
    click.option(
        "--min-tokens-per-second",
        metavar="X",
        type=Finite(min=0, min_open=True),
        help="That the file reaches on this machine, as bitquilt bench measures an answer.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the search."),
    click.option(
        "--search-time",
        metavar="SECONDS",
        type=Finite(min=0),
        help="That the search may take.",
    ),
    click.option(
        "--search-tokens",
        type=click.IntRange(min=0),
        help="Token-forwards of mixes that it may take, beside what scores take.  [default: by the "
        "model's size]",
    ),
    click.option(
        "--scores",
        type=click.Choice(SCORES),
        default=SCORES[0],
        show_default=True,
        help="Of single matrices: from one pass over text, or each measured by itself.",
    ),
    click.option(
        "--search",
        type=click.Choice(SEARCH_METHODS),
        default=SEARCH_METHODS[0],
        show_default=True,
        help="Mixes that a prediction proposes race on true KL; the exact knapsack on the scores; "
        "EvoPress, which takes 59 million token-forwards.",
    ),
)


JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."
)


def print_json(content: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(nan_to_null(content), indent=2, ensure_ascii=False))
