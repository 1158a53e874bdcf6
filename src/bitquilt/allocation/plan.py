"""From what the user asks for to an allocation of an exact size, before any work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitquilt import qtypes
from bitquilt.allocation import presets, sensitivity
from bitquilt.allocation import recipe as recipes
from bitquilt.allocation.advice import overhead_note
from bitquilt.allocation.budget import Budget, label_of
from bitquilt.allocation.candidates import TypeBytes, candidate_sets
from bitquilt.allocation.knapsack import fullest_nbytes
from bitquilt.allocation.preset_names import asked_preset, preset_names
from bitquilt.allocation.recipe import Recipe
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, CandidateSets, sizes_of
from bitquilt.bases.converter import find_converter, install_command
from bitquilt.bases.vision import vision_bytes
from bitquilt.config import AllocationConfig, PlanConfig, QuantizeConfig, SearchConfig
from bitquilt.errors import PartlyRefusedError, UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.rounding import METHODS
from bitquilt.rounding.given_cells import offered_types
from bitquilt.runtime.device import computing
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.sizes import human, parse_size
from bitquilt.targets import Target, parse_targets
from bitquilt.targets.layout import Layout
from bitquilt.trimming.trimmed import planned_model

CORRECTED_BELOW = 512_000_000
"""Weights below which blocks are rounded again for those before them where nothing is searched and
nobody says otherwise: it takes about as long as the rest (docs/decisions/sequential.md)."""
UNASKED = (
    "the types are given, so there is time to correct each block for the errors of those before "
    "it; --no-sequential leaves that out"
)
FILLING = 0.02
"""The share of a file that may be filling, so that it has the size that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of a model: a budget, a mix, or a budget with pins."""

    budget: Budget | None
    recipe: Recipe | None
    preset: str | None
    label: str
    """For file names: ``4.5bit``, ``600MB``, ``Q4_K_M``, the recipe's file name."""
    fast: bool = False
    """Whether speed matters too."""
    searches: bool = False
    """Whether something was said about how to search."""
    offered: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Module path → types that files give the matrix on."""
    sequential: bool | None = False
    """Whether blocks are rounded again for those before them; None where nobody says it here."""
    has_time: bool = False
    """Whether that is done unasked, where nothing is searched and the model is small."""

    def corrects(self, checkpoint: Checkpoint) -> bool:
        """Whether the blocks of a model are rounded again for those before them."""
        return self.corrects_unasked(checkpoint) if self._said is None else self._said

    def corrects_unasked(self, checkpoint: Checkpoint) -> bool:
        """Whether they are although neither the options nor the recipe say it."""
        alone = self._said is None and self.budget is None
        return alone and self.has_time and checkpoint.weights < CORRECTED_BELOW

    @property
    def _said(self) -> bool | None:
        if self.sequential is None and self.recipe is not None:
            return self.recipe.sequential
        return self.sequential

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the request has no effect, and why."""
        if self.budget and self.recipe and (self.recipe.default or self.recipe.rules):
            where = self.recipe.where
            return (
                (
                    f"with --bits or --size, only the pins of {where} apply; its default and rules "
                    "have no effect"
                ),
            )
        if self.budget is None and self.searches:
            return (
                (
                    "a recipe without --bits or --size leaves nothing to search, so the search "
                    "options have no effect"
                ),
            )
        return ()


def requests(config: PlanConfig) -> list[Request]:
    """What a config asks for, one request for each budget.

    Raises:
        UserError: the size, the recipe or the preset cannot be understood, or a preset is given a
            budget.
    """
    recipe, preset = None, asked_preset(config)
    if config.recipe is not None and preset is None:
        recipe = recipes.read_recipe(Path(config.recipe))
    allocating = config if isinstance(config, AllocationConfig) else None
    fast = allocating is not None and allocating.search.tokens_per_second is not None
    quantizing = config if isinstance(config, QuantizeConfig) else None
    offered = offered_types([Path(file) for file in allocating.cells]) if allocating else {}
    return [
        Request(
            budget=_budget(bits, config.size),
            recipe=recipe,
            preset=preset,
            label=label_of(bits, config.size, config.recipe),
            fast=fast,
            searches=allocating is not None and allocating.search != SearchConfig(),
            offered=offered,
            sequential=quantizing.sequential if quantizing else None,
            has_time=_has_time(quantizing),
        )
        for bits in config.several_bits
    ]


def _has_time(config: QuantizeConfig | None) -> bool:
    """Whether matrices are rounded as well as can be; those that files give stay as they are."""
    return config is not None and config.rounding == METHODS[-1] and not config.cells


def _budget(bits: float | None, size: str | None) -> Budget | None:
    if bits is None and size is None:
        return None
    return Budget(bits=bits) if bits is not None else Budget(size=parse_size(str(size)))


@dataclass(frozen=True)
class Space:
    """What a search may choose from."""

    candidate_sets: CandidateSets
    """The candidates of every matrix; their predicted KL is not known yet."""
    capacity: int
    """Bytes that the matrices may take together: those of the largest mix within the budget."""

    @property
    def candidates(self) -> dict[str, list[str]]:
        """Module path → type names."""
        return {module: [choice.qtype for choice in c] for module, c in self.candidate_sets.items()}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One file to be made: its mix and its exact size."""

    target: Target
    """The output format."""
    label: str
    """What was asked for, as file names say it: ``4.5bit``, ``600MB``, ``Q4_K_M``."""
    allocation: dict[str, str] = field(repr=False)
    """Module path → type name. Where there is a budget this is a first guess of the same size."""
    layout: Layout
    """The layout of the file; where a mix is a little smaller, padding makes up for it."""
    space: Space | None = field(repr=False)
    """What a search may choose from; None where the recipe decides everything."""
    preset: str | None = None
    """The preset that the mix is, where that was asked for."""
    sequential: bool = False
    """Whether blocks are rounded again for those before them."""
    notes: tuple[str, ...] = ()
    """What of the request has no effect, or another one than people expect: a sentence each."""

    @property
    def bits(self) -> float:
        """Bits per weight of the tensors, on this allocation."""
        return self.layout.bits

    @property
    def bits_on_disk(self) -> float:
        """Bits per weight of everything on disk."""
        return self.layout.bits_on_disk

    def layout_of(self, checkpoint: Checkpoint, allocation: Allocation) -> Layout:
        """Give the layout of the file on another allocation, padded to the planned size."""
        return self.target.plan(checkpoint, allocation).filled(self.layout.total_bytes)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "target": self.target.name,
            "bytes": self.layout.total_bytes,
            "bits": self.bits,
            "bits_on_disk": self.bits_on_disk,
            "breakdown": self.layout.breakdown,
            "tokenizer_counted": self.layout.breakdown["tokenizer"] > 0,
            "allocation": self.allocation,
            "sequential": self.sequential,
        }


def without_filling(
    plan: Plan, checkpoint: Checkpoint, allocation: Allocation, limited: bool, progress: Progress
) -> Plan:
    """Plan a smaller file where types leave more bytes of its size unused than filling may take.

    A limit of speed does that, and a source that is quantized itself: on the types that it has
    already nothing is lost, so more bits bring nothing there, and what is left may be too little
    for the next type of another matrix.

    Args:
        plan: the file.
        checkpoint: the model.
        allocation: the types that were found for it.
        limited: whether speed is limited; then no byte is filling.
        progress: told that a file is smaller, if not for its speed.
    """
    layout = plan.target.plan(checkpoint, allocation)
    unused = plan.layout.total_bytes - layout.total_bytes
    if not limited and unused <= FILLING * plan.layout.total_bytes:
        return plan
    if not limited:
        small, large = human(layout.total_bytes), human(plan.layout.total_bytes)
        progress.say(
            f"{plan.label} for {plan.target}: the best mix of types takes {small}, and no mix up "
            f"to the {large} asked for is better, so the file is smaller than its name says"
        )
    return replace(plan, layout=layout)


def make_plan(checkpoint: Checkpoint, request: Request, target: Target) -> Plan:
    """Decide the size of one file, and a mix that has it.

    The size is final: a search later moves types about, never the total.

    Raises:
        UserError: the budget cannot be met, the recipe does not suit the model.
    """
    space = None
    if request.budget is not None:
        pins = recipes.pins(request.recipe, checkpoint, target.name) if request.recipe else {}
        space = _space(checkpoint, target, pins, request, request.budget)
        guess = AllocationSpace.of(sensitivity.prior(checkpoint, space.candidate_sets))
        allocation = guess.allocation(solve(guess, space.capacity))
    elif request.recipe is not None:
        allocation = recipes.resolve_recipe(request.recipe, checkpoint, target.name)
    else:
        allocation = presets.preset(str(request.preset), checkpoint, target.name)
    layout = target.plan(checkpoint, allocation)
    if space is not None:
        layout = layout.filled(layout.fixed_bytes + space.capacity)
    return Plan(
        target=target,
        label=request.label,
        allocation=allocation,
        layout=layout,
        space=space,
        preset=request.preset,
        sequential=request.corrects(checkpoint),
        notes=(
            *checkpoint.to_be_told,
            *_about_vision(checkpoint, target),
            *target.about_types(set(allocation.values())),
            *request.notes,
            *_larger_than_source(checkpoint, request, target, layout),
            *_overhead(checkpoint, request, target),
            *((UNASKED,) if request.corrects_unasked(checkpoint) else ()),
        ),
    )


def make_plans(
    checkpoint: Checkpoint, asked: Sequence[Request], targets: Sequence[Target]
) -> tuple[list[Plan], str]:
    """Decide the sizes of all files that are possible.

    Returns:
        A plan per request and format, and a sentence on those that cannot be made; empty if all
        can.

    Raises:
        UserError: none can be made.
    """
    plans: list[Plan] = []
    refused: dict[str, list[str]] = {}
    for request, target in itertools.product(asked, targets):
        try:
            plans.append(make_plan(checkpoint, request, target))
        except UserError as error:
            refused.setdefault(error.sentence, []).append(f"{request.label} in {target}")
    if not plans and len(refused) == 1:
        raise UserError(*refused)
    sentence = ". ".join(f"{', '.join(which)}: {why}" for why, which in refused.items())
    if not plans:
        raise UserError(sentence)
    return plans, sentence


def _about_vision(checkpoint: Checkpoint, target: Target) -> list[str]:
    """Say where the vision tower of a model goes that also sees."""
    config = checkpoint.original_config
    alone = not checkpoint.tensor_types  # a config without weights
    if not config.get("vision_config") or not (alone or checkpoint.vision):
        return []
    file = target.vision_file(checkpoint.name)
    if target.keeps_vision(checkpoint):
        return [
            f"{checkpoint.name}'s vision tower is in the {target} directory, unquantized, and "
            "counts as a part of its size; mlx-vlm uses it, and mlx-lm ignores it"
        ]
    if file is None:
        return [target.blind_note(checkpoint.name)]
    try:
        size = f"about {vision_bytes(config) / 1e6:,.0f} MB"
    except UserError:
        size = "unquantized"
    said = f"{checkpoint.name}'s vision tower goes into {file} beside the {target} file, {size}"
    if find_converter() is None:
        said += f", once llama.cpp's converter is installed: run `{install_command()}`"
    return [said]


def _overhead(checkpoint: Checkpoint, request: Request, target: Target) -> list[str]:
    """Say it where much of a size goes to other things than weights."""
    if request.budget is None or request.budget.size is None:
        return []
    note = overhead_note(checkpoint, request.budget.size, target)
    return [note] if note else []


def _larger_than_source(
    checkpoint: Checkpoint, request: Request, target: Target, layout: Layout
) -> list[str]:
    """Say it where a file comes out no smaller than a source that is quantized already."""
    source = checkpoint.gguf_source
    if source is None or not checkpoint.quantized:
        return []
    before, after = source.stat().st_size, layout.total_bytes
    if after < before:
        return []
    return [
        f"{checkpoint.name}-{request.label}{target.suffix} will have {after:,} bytes, and its "
        f"source {source.name}, which is already quantized, has {before:,}: a larger file cannot "
        "be closer to the original than its source; ask for a smaller one, or quantize the "
        "original checkpoint"
    ]


def _space(
    checkpoint: Checkpoint,
    target: Target,
    pins: Mapping[str, str],
    request: Request,
    budget: Budget,
) -> Space:
    """The candidates that bring a file to its budget."""
    layout = target.plan(checkpoint, {**dict.fromkeys(checkpoint.matrices, "BF16"), **pins})
    nbytes = cell_bytes(checkpoint, target)
    found = candidate_sets(
        *(checkpoint, target, pins, nbytes, layout, budget),
        fast=request.fast,
        offered=request.offered,
    )
    # norms are wider in some formats where the embedding may be, so bits are of the widest ones
    widest = {module: max(own, key=lambda c: c.nbytes).qtype for module, own in found.items()}
    capacity = budget.capacity(target.plan(checkpoint, widest))
    return Space(found, fullest_nbytes(sizes_of(found), capacity))


def cell_bytes(checkpoint: Checkpoint, target: Target) -> TypeBytes:
    """What a matrix takes in a file on a type, alignment included."""

    def nbytes(module: str, qtype: str) -> int:
        unaligned = qtypes.get(qtype).nbytes(*checkpoint.matrices[module])
        return -(-unaligned // target.alignment) * target.alignment

    return nbytes


def plan(model: str | Path, config: PlanConfig | None = None, **options: Any) -> list[Plan]:
    """Give sizes and allocations, to the byte, before any work.

    Args:
        model: hub id, Hugging Face directory, config.json, GGUF file, or ``demo``.
        config: what is wanted; that of a search or of :func:`bitquilt.quantize` will do.
        options: fields of :class:`bitquilt.QuantizeConfig`, instead of a config.

    Returns:
        One plan per budget and format.

    Raises:
        UserError: the model or the request makes no sense.
        PartlyRefusedError: some budgets or formats are impossible; it has the plans of the others.
    """
    given = QuantizeConfig if config is None else PlanConfig
    config = given.of(config, options)
    if isinstance(config, QuantizeConfig) and config.imatrix is not None:
        raise UserError("from Python, plan --imatrix with `bitquilt.plan_gguf_files`")
    asked = requests(config)
    with (
        computing(config.device, config.threads),
        planned_checkpoint(model, config) as checkpoint,
    ):
        plans, refused = make_plans(checkpoint, asked, parse_targets(config.to))
    if refused:
        raise PartlyRefusedError(refused, plans)
    return plans


@contextmanager
def planned_checkpoint(model: str | Path, config: PlanConfig) -> Iterator[Checkpoint]:
    """Open what a config is about, as far as a plan needs it: a model, or a trimmed one.

    Raises:
        UserError: the model makes no sense, or cannot be trimmed.
    """
    if isinstance(config, QuantizeConfig) and config.trim is not None:
        with planned_model(model, config.trim, Path(config.output)) as trimmed:
            yield trimmed
    else:
        yield open_checkpoint(model, weights=False)


Rivals = Mapping[str, Allocation]
"""Name of a preset → its allocation, beside which what is found has to stand."""


def largest_preset(plan: Plan, checkpoint: Checkpoint) -> Rivals:
    """The largest preset that is no larger than the planned file, by name; none may be.

    Matrices that have no choice, such as pinned ones, are as they have to be.
    """
    if plan.space is None:
        return {}
    sets = plan.space.candidate_sets
    fixed = {module: own[0].qtype for module, own in sets.items() if len(own) == 1}
    nbytes = cell_bytes(checkpoint, plan.target)
    sizes: dict[str, int] = {}
    found: dict[str, Allocation] = {}
    for name in preset_names(plan.target.name):
        with suppress(UserError):  # a preset that this model's rows do not take
            found[name] = presets.preset(name, checkpoint, plan.target.name) | fixed
            sizes[name] = sum(nbytes(*cell) for cell in found[name].items())
    fitting = [name for name, size in sizes.items() if size <= plan.space.capacity]
    largest = max(fitting, key=lambda name: sizes[name], default=None)
    return {} if largest is None else {largest: found[largest]}


def candidate_types(
    plans: Sequence[Plan], rivals: Sequence[Rivals], checkpoint: Checkpoint
) -> dict[str, list[str]]:
    """Module path → the types that any of the files may have it on."""
    candidates: dict[str, dict[str, None]] = {module: {} for module in checkpoint.matrices}
    for plan in plans:
        for module, qtype in plan.allocation.items():
            names = plan.space.candidates[module] if plan.space else [qtype]
            candidates[module] |= dict.fromkeys(names)
    for rival in rivals:
        for allocation in rival.values():
            for module, qtype in allocation.items():
                candidates[module][qtype] = None
    return {module: list(names) for module, names in candidates.items()}
