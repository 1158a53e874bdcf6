"""What a run can be asked for: one definition of every option.

Each field has its sentence once. The command line (:mod:`bitquilt.cli.options`), the Python
functions and the reference pages are derived from it. What a config alone can show to be wrong is
refused when it is made, before any work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitquilt import targets
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.errors import UserError
from bitquilt.rounding import METHODS
from bitquilt.runtime.compute import device_option, threads_option
from bitquilt.runtime.durations import parse_duration
from bitquilt.runtime.options import Options, option
from bitquilt.runtime.sizes import parse_size
from bitquilt.trimming.config import trim_config

SEARCH_METHODS = ("race", "knapsack", "evopress")
"""Ways to an allocation; EvoPress is the published baseline."""
SCORES = ("predicted", "measured")
"""Where the scores of single matrices come from."""
EVOPRESS_WINDOWS = 512
"""Windows of 512 tokens that EvoPress draws from: its authors' 262,144 tokens."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Options):
    """How the allocation of a budget is searched for."""

    method: str = option(
        "How the types of the matrices are chosen. race: mixes of types with a low predicted KL "
        "are measured, and the best one is taken. knapsack: the mix with the lowest predicted KL "
        "is taken, unmeasured. evopress: EvoPress, which runs 59 million tokens through the model.",
        default="race",
        flag="--search",
        choices=SEARCH_METHODS,
    )
    scores: str = option(
        "A score is the KL that a type should cost a matrix. predicted: all scores come from one "
        "pass over text. measured: each matrix is quantized alone, and the KL is measured.",
        default="predicted",
        choices=SCORES,
    )
    tokens: int | None = option(
        "The search runs at most this many tokens through the model; those for the scores come on "
        "top. If not given, the model's size decides.",
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
        "With every file, this machine writes answers at this many tokens per second or more, as "
        "`bitquilt bench` measures it.",
        default=None,
        flag="--min-tokens-per-second",
        metavar="X",
        above=0,
    )
    ray: str | None = option(
        "The search uses all machines of the Ray cluster at ADDRESS. Without ADDRESS, it uses the "
        "cluster that runs here, or starts one. Install it with pip install 'bitquilt[ray]'.",
        default=None,
        metavar="[ADDRESS]",
        optional_value="",
    )

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`."""
        super().__post_init__()
        if self.method == "evopress" and self.tokens_per_second is not None:
            raise UserError(
                "EvoPress cannot keep to a speed; with --min-tokens-per-second, give "
                "--search=race or --search=knapsack"
            )

    def windows(self, usual: int) -> int:
        """Windows of text to measure on: EvoPress draws from as many as its authors'."""
        return EVOPRESS_WINDOWS if self.method == "evopress" else usual


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Options):
    """How large the files are to be, and in which formats."""

    bits: float | Sequence[float] | None = option(
        "The tensors get this many bits per weight, as llama.cpp and mlx-lm count them; the "
        "tokenizer comes on top. Several numbers, separated by commas, give one result each.",
        default=None,
        metavar="BITS[,BITS…]",
        many=True,
        above=0,
        most=32,
    )
    size: str | None = option(
        "Everything on disk, tokenizer included, takes at most this size, like 600MB or 1.5GiB.",
        default=None,
        metavar="SIZE",
    )
    recipe: str | Path | None = option(
        "A recipe file or a preset (Q4_K_M, 4bit-g64 …) says which type each matrix gets. With "
        "--bits or --size, only the pins of a recipe file apply, and the search chooses the rest.",
        default=None,
        metavar="FILE|PRESET",
        reads=".json",
    )
    to: str = option("The output format.", default="gguf", choices=(*targets.TARGETS, targets.ALL))
    device: str = device_option()
    threads: int | None = threads_option()

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`; each number of bits is there once."""
        super().__post_init__()
        if isinstance(self.bits, tuple):
            object.__setattr__(self, "bits", tuple(dict.fromkeys(self.bits)))
        if self.size is not None:
            parse_size(self.size)
        if self.bits is not None and self.size is not None:
            raise UserError("--bits and --size both set the size; give only one of them")
        if self.bits is None and self.size is None and self.recipe is None:
            raise UserError(
                "how small should it be? give --bits=4.5 for each weight, --size for everything on "
                "disk, or --recipe=Q4_K_M"
            )

        self._refuse_too_few_bits()

    def _refuse_too_few_bits(self) -> None:
        """Refuse bits that no type of any format that is asked for is small enough for.

        Where one of several budgets or formats is possible, a plan says which are not.
        """
        if not isinstance(self.bits, tuple):
            return
        formats = targets.parse_targets(self.to)
        if max(self.bits) < min(each.fewest_bits for each in formats):
            takes = " and ".join(f"{each.fewest_bits:g} bits in {each}" for each in formats)
            raise UserError(
                f"--bits={max(self.bits):g} is too small: a weight takes at least {takes}; ask for "
                "more, like --bits=3"
            )

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
        "The rounding is calibrated on this text (.txt or .jsonl) instead of the bundled text.",
        default=None,
        metavar="FILE",
        reads="",
        text=True,
    )
    work_dir: str | Path | None = option(
        "The stages keep their results in this directory, so that the same command continues "
        "where it was stopped.  [default: <output>/<model>.work]",
        default=None,
        metavar="DIR",
    )
    cells: Sequence[str | Path] = option(
        "This GGUF file is the same model, quantized by any tool. A matrix of it is used where its "
        "predicted KL is lower than that of bitquilt's own matrix of the same type. The option can "
        "be repeated.",
        default=(),
        metavar="FILE",
        many=True,
        repeated=True,
        reads="",
    )
    rounding: str = option(
        "How each matrix is rounded. nearest: to the nearest level. gptq: with GPTQ's error "
        f"feedback. {METHODS[-1]}: as gptq, then coordinate descent and a refit of the scales.",
        default=METHODS[-1],
        choices=METHODS,
    )
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    time: str | None = option(
        "The whole run takes about this long, like 20m or 1h30m: it reads as much text, and "
        "measures as many mixes, as there is time for.  [default: what the model's size warrants]",
        default=None,
        metavar="TIME",
    )
    text_budget: TextBudget | None = option(
        "Each stage reads this much text. If not given, the model's size decides.",
        default=None,
        flag="",
    )
    held_out: str | Path | None = option(
        "Files are measured on this text (.txt or .jsonl) instead of the bundled held-out text.",
        default=None,
        flag="",
    )

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`."""
        super().__post_init__()
        if self.time is not None:
            parse_duration(self.time, "--time")
        budget = self.bits is not None or self.size is not None
        if self.search.tokens_per_second is not None and not budget:
            raise UserError(
                "a recipe leaves nothing to choose by speed; with --min-tokens-per-second, give "
                "--bits or --size"
            )

    def work_directory(self, name: str) -> Path:
        """Return where a run on the model of that name keeps its stages' results."""
        return Path(self.work_dir or Path(self.output) / f"{name}.work")

    def require_budget(self, model: str | Path) -> None:
        """Refuse a recipe without a budget, which leaves nothing to search.

        Raises:
            UserError: it says what shows the recipe for the model.
        """
        if self.bits is None and self.size is None:
            raise UserError(
                f"{self.recipe} alone leaves nothing to search; give --bits or --size too, or see "
                f"what it says with `bitquilt plan {model} --recipe {self.recipe}`"
            )


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(AllocationConfig):
    """What :func:`bitquilt.quantize` and :func:`bitquilt.quantize_gguf` can be asked for."""

    imatrix: str | Path | None = option(
        "MODEL is a GGUF file of any architecture and size, and this is its importance matrix from "
        "llama-imatrix or `bitquilt imatrix`. The file is quantized tensor by tensor: the model is "
        "not run, and the result is not measured.",
        default=None,
        metavar="FILE",
        reads="",
    )
    base: str | Path | None = option(
        "This GGUF file, which llama.cpp's converter made from MODEL in BF16, F16 or F32, is "
        "quantized. bitquilt does so for architectures that it does not know itself.",
        default=None,
        metavar="FILE",
        reads="",
    )
    trim: Sequence[str] | None = option(
        "First, tokens are removed from the vocabulary, as `bitquilt trim` does it. The list, like "
        "en,64k, names what to keep: languages, texts (.txt or .jsonl) and a number of tokens. The "
        "trimmed model stays in the output directory.",
        default=None,
        metavar="LANG|TEXT|N,…",
        many=True,
    )
    sequential: bool | None = option(
        "Each block is rounded again to make up for the errors of the quantized blocks before it "
        "(GPTAQ). If not given, the recipe decides. A preset, and a recipe that says nothing, has "
        "it done for models below 512 million weights, unless a size is asked for.",
        default=None,
        negated=True,
    )
    tune: bool = option(
        "Scales and norms are learned by gradient descent. This takes a GPU or patience.",
        default=False,
    )
    keep_work: bool = option(
        "The work directory of a model of 512 million weights or more keeps the rounded matrices. "
        "Without it, candidates go when a format is decided, and the rest when the files have it.",
        default=False,
    )
    engine_check: bool = option(
        "Every file is run in its own engine before it is put in its place.",
        default=True,
        flag="",
    )

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`; what needs a run of the model excludes --imatrix."""
        super().__post_init__()
        if self.imatrix is not None:
            why = "with --imatrix the model is not run"
            if self.to != targets.GGUF.name:
                raise UserError(f"{why}, and becomes a GGUF file alone; leave out --to")
            self._refuse_unused(why, {"imatrix"})
        elif self.base is not None:
            self.refuse_unused_by_a_base()
        if self.trim is not None:
            trim_config(self.trim, self.output)  # refuses what makes no sense

    def refuse_unused_by_a_base(self) -> None:
        """Refuse options that have no effect on a model that goes by its base.

        Raises:
            UserError: it names the option.
        """
        self._refuse_unused(
            "a model that a converter wrote first is rounded once, without a search",
            {"base", "calibration", "device", "rounding", "work_dir"},
        )

    def _refuse_unused(self, why: str, used: set[str]) -> None:
        """Refuse what a model that is not run for its result does not listen to."""
        taken = used | {"bits", "size", "recipe", "to", "output", "threads"}
        for one in (self.search, self):
            for name, known in one.described().items():
                default = type(one).__dataclass_fields__[name].default
                if name not in taken and known.flag != "" and getattr(one, name) != default:
                    raise UserError(
                        f"{why}, so {known.flag_of(name)} has no effect; leave out one of them"
                    )


@dataclass(frozen=True, kw_only=True)
class ImatrixConfig(Options):
    """What :func:`bitquilt.make_imatrix` can be asked for."""

    output: str | Path = option(
        "The importance matrix is written to this file: as GGUF, or in the older form if the name "
        "ends with .dat.",
        default="imatrix.gguf",
        short="-o",
        metavar="FILE",
    )
    base: str | Path | None = option(
        "The importance matrix is for this GGUF file, which llama.cpp's converter made from MODEL.",
        default=None,
        metavar="FILE",
        reads="",
    )
    calibration: str | Path | None = option(
        "The model reads this text (.txt or .jsonl) instead of the bundled text.",
        default=None,
        metavar="FILE",
        reads="",
        text=True,
    )
    device: str = device_option()
    threads: int | None = threads_option()
    text_budget: TextBudget | None = option(
        "The model reads this much text. If not given, the model's size decides.",
        default=None,
        flag="",
    )
