"""What a run can be asked for: one definition of every option.

Each field has its sentence once. The command line (:mod:`bitquilt.cli.options`), the Python
functions and the reference pages are derived from it. What a config alone can show to be wrong is
refused when it is made, before any work.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from bitquilt import targets
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.errors import UserError
from bitquilt.rounding import METHODS

SEARCH_METHODS = ("race", "knapsack", "evopress")
"""Ways to an allocation; EvoPress is the published baseline."""
SCORES = ("predicted", "measured")
"""Where the scores of single matrices come from."""
EVOPRESS_WINDOWS = 512
"""Windows of 512 tokens that EvoPress draws from: its authors' 262,144 tokens."""

Config = TypeVar("Config", bound="Options")


@dataclass(frozen=True)
class Option:
    """What the command line and the reference pages know of a field."""

    help: str
    """One or two full sentences."""
    flag: str | None = None
    """Its name on the command line; the field's own if not given. Empty: from Python only."""
    short: str | None = None
    """A second name of one letter."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    """Whether several values can be given, with commas between them."""
    optional_value: str | None = None
    """What the flag alone means, where its value may be left out."""
    above: float | None = None
    """The value must be greater than this number."""
    least: float | None = None
    """The value must not be less than this number."""

    def flag_of(self, name: str) -> str:
        """The name on the command line of a field of this name."""
        return self.flag or f"--{name.replace('_', '-')}"


def option(help: str, *, default: Any = MISSING, **facts: Any) -> Any:
    """A field with its :class:`Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **facts)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """A set of options. Subclasses add fields; each has its :class:`Option`."""

    def __init_subclass__(cls) -> None:
        """Put the sentences of the fields into the docstring, where ``help`` shows them."""
        super().__init_subclass__()
        known: dict[str, Option] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).get("__dataclass_fields__", vars(base)).items():
                if isinstance(value, dataclasses.Field) and "option" in value.metadata:
                    known[name] = value.metadata["option"]
        lines = [f"    {name}: {option.help}" for name, option in known.items()]
        cls.__doc__ = "\n".join([f"{cls.__doc__}", "", "Attributes:", *lines])

    def __post_init__(self) -> None:
        """Refuse values that an option's own facts exclude; one value of many becomes a tuple.

        Raises:
            UserError: a value is of another type, is not among the choices, or is out of range.
        """
        hints = get_type_hints(type(self))
        for field in fields(self):
            known = field.metadata.get("option", Option(field.name))
            flag, value, kinds = known.flag_of(field.name), getattr(self, field.name), None
            if known.many and value is not None:
                single = isinstance(value, str | int | float)
                value = (value,) if single else tuple(value)
                object.__setattr__(self, field.name, value)
                kinds = _element_types(hints[field.name])
                if not value:
                    raise UserError(f"{flag} has no value; give one, or leave the option out")
            for each in value if known.many and value is not None else (value,):
                _check_type(flag, each, kinds or _types(hints[field.name]))
                _check(flag, each, known)

    @classmethod
    def described(cls) -> dict[str, Option]:
        """Field name → its option, in the order of definition."""
        return {f.name: f.metadata["option"] for f in fields(cls) if "option" in f.metadata}

    @classmethod
    def of(cls: type[Config], config: Config | None, options: Mapping[str, Any]) -> Config:
        """A config, or the one that keyword arguments describe.

        Raises:
            UserError: both are given, or an option does not exist.
        """
        if config is not None and options:
            raise UserError(
                f"{', '.join(options)} and a {cls.__name__} were both given; put the options "
                f"into the {cls.__name__}"
            )
        if unknown := sorted(options.keys() - {field.name for field in fields(cls)}):
            known = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{cls.__name__} has no option {unknown[0]}; its options are {known}")
        if config is not None and not isinstance(config, cls):
            raise UserError(f"a {type(config).__name__} was given where a {cls.__name__} belongs")
        return cls(**options) if config is None else config

    def arguments(self) -> list[str]:
        """The words of a command line that ask for the same; defaults are left out."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Options):
                words += value.arguments()
            known = field.metadata.get("option")
            if known is None or known.flag == "" or value == field.default:
                continue
            words.append(known.flag_of(field.name))
            if isinstance(value, tuple):
                words.append(",".join(map(_word, value)))
            elif value is not True:
                words.append(str(value))
        return words


def _word(value: Any) -> str:
    """One value of several, as the command line takes it."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _types(hint: Any) -> tuple[type, ...]:
    """The plain types of a hint: ``float | None`` is float and None."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(part for part in parts if isinstance(part, type))


def _element_types(hint: Any) -> tuple[type, ...]:
    """The types of one of many values: ``Sequence[float] | None`` is float."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(kind for part in parts for kind in get_args(part) if isinstance(kind, type))


def _check_type(flag: str, value: Any, kinds: tuple[type, ...]) -> None:
    wider = (*kinds, int) if float in kinds else kinds
    if isinstance(value, wider) and not (isinstance(value, bool) and bool not in kinds):
        return
    names = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
    raise UserError(f"{flag} is {value!r}, which is not a value of type {names}")


def _check(flag: str, value: Any, known: Option) -> None:
    if value is None:
        return
    if value == "" and known.optional_value is None:
        raise UserError(f"{flag} is empty; give a value, or leave the option out")
    if known.choices and value not in known.choices:
        raise UserError(f"{flag} {value} is unknown; choose one of {', '.join(known.choices)}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{flag} nan is not a number; give a number")
    if known.above is not None and not value > known.above:
        raise UserError(f"{flag} {value} is not greater than {known.above:g}; give a larger number")
    if known.least is not None and not value >= known.least:
        raise UserError(f"{flag} {value} is less than {known.least:g}; give a larger number")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Options):
    """How the allocation of a budget is searched for."""

    method: str = option(
        "How to find the mix. race: mixes that a prediction proposes race on measured KL. "
        "knapsack: the exact optimum of the scores. evopress: EvoPress, which takes 59 million "
        "token-forwards.",
        default="race",
        flag="--search",
        choices=SEARCH_METHODS,
    )
    scores: str = option(
        "Where the scores of single matrices come from. predicted: one pass over text. measured: "
        "each matrix is measured by itself.",
        default="predicted",
        choices=SCORES,
    )
    tokens: int | None = option(
        "The search measures mixes on at most this many token-forwards; scores take more. If not "
        "given, the model's size decides.",
        default=None,
        flag="--search-tokens",
        metavar="N",
        least=0,
    )
    seconds: float | None = option(
        "The search takes at most this many seconds.",
        default=None,
        flag="--search-time",
        metavar="SECONDS",
        least=0,
    )
    seed: int = option(
        "The search draws random numbers from this seed.", default=0, metavar="N", least=0
    )
    tokens_per_second: float | None = option(
        "Every file reaches this speed on this machine, as bitquilt bench measures an answer.",
        default=None,
        flag="--min-tokens-per-second",
        metavar="X",
        above=0,
    )
    ray: str | None = option(
        "The machines of a Ray cluster measure mixes: the cluster at this address, the one that "
        "runs here, or a new one. This needs the extra ray.",
        default=None,
        metavar="[ADDRESS]",
        optional_value="",
    )

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`."""
        super().__post_init__()
        if self.method == "evopress" and self.tokens_per_second is not None:
            raise UserError(
                "EvoPress knows no limit of speed; with --min-tokens-per-second give --search "
                "race or knapsack"
            )

    def windows(self, usual: int) -> int:
        """Windows of text to measure on: EvoPress draws from as many as its authors'."""
        return EVOPRESS_WINDOWS if self.method == "evopress" else usual


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Options):
    """How large the files are to be, and in which formats."""

    bits: float | Sequence[float] | None = option(
        "The file has this many bits per weight over all weights, everything in the file counted. "
        "Several numbers, with commas between them, give one result each.",
        default=None,
        metavar="BITS[,BITS…]",
        many=True,
    )
    size: str | None = option(
        "The file has this size, like 600MB or 1.5GiB.", default=None, metavar="SIZE"
    )
    recipe: str | Path | None = option(
        "A recipe file or a preset (Q4_K_M, 4bit-g64 …) says which type each matrix gets. With a "
        "budget, only the file's pins hold.",
        default=None,
        metavar="FILE|PRESET",
    )
    to: str = option("The output format.", default="gguf", choices=(*targets.TARGETS, targets.ALL))

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`; each number of bits is there once."""
        super().__post_init__()
        if isinstance(self.bits, tuple):
            object.__setattr__(self, "bits", tuple(dict.fromkeys(self.bits)))
        for each in self.several_bits:
            if each is not None and not 0 < each <= 32:
                raise UserError(f"--bits {each} is not between 0 and 32; try --bits 4.5")
        if self.bits is not None and self.size is not None:
            raise UserError("--bits and --size are two budgets; give one of them")
        if self.bits is None and self.size is None and self.recipe is None:
            raise UserError("how small? say --bits 4.5, --size 600MB or --recipe Q4_K_M")

    @property
    def several_bits(self) -> tuple[float | None, ...]:
        """The budgets in bits; one None where the budget is another."""
        return (None,) if self.bits is None else self.bits  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class AllocationConfig(PlanConfig):
    """What :func:`bitquilt.search` can be asked for: a plan, and how to decide the allocation."""

    output: str | Path = option(
        "Everything is written into this directory.", default=".", short="-o", metavar="DIR"
    )
    calibration: str | Path | None = option(
        "This text calibrates instead of the bundled text (.txt or .jsonl).",
        default=None,
        metavar="FILE",
    )
    work_dir: str | Path | None = option(
        "The stages keep their results in this directory, so that the same command continues "
        "where it was stopped.  [default: <output>/<model>.work]",
        default=None,
        metavar="DIR",
    )
    rounding: str = option(
        "How each matrix is rounded. nearest: to the nearest level. gptq: with error feedback. "
        f"{METHODS[-1]}: with coordinate descent and a refit of the scales too.",
        default=METHODS[-1],
        choices=METHODS,
    )
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    text_budget: TextBudget | None = option(
        "Each stage reads this much text. If not given, the model's size decides.",
        default=None,
        flag="",
    )
    held_out: str | Path | None = option(
        "This text judges instead of the bundled held-out text (.txt or .jsonl).",
        default=None,
        flag="",
    )

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`."""
        super().__post_init__()
        budget = self.bits is not None or self.size is not None
        if self.search.tokens_per_second is not None and not budget:
            raise UserError(
                "a recipe leaves nothing to choose by speed; with --min-tokens-per-second give "
                "--bits or --size"
            )


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(AllocationConfig):
    """What :func:`bitquilt.quantize` can be asked for."""

    sequential: bool = option(
        "Each block is rounded again for the inputs that the quantized blocks before it give it "
        "(GPTAQ).",
        default=False,
    )
    tune: bool = option(
        "Scales and norms are learned by gradient descent. This takes a GPU or patience.",
        default=False,
    )
    engine_check: bool = option(
        "Every file is run in its own engine before it is put in its place.",
        default=True,
        flag="",
    )


def command(verb: str, model: str, config: Options) -> str:
    """The command line that asks for the same, for a shell."""
    return shlex.join(["bitquilt", verb, str(model), *config.arguments()])
