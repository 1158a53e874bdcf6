"""The mix of a model file that anybody made: read, taken as a recipe, compared with another.

What a file has is taken as it is where it can be. Where it cannot, since bitquilt does not write
the type, the model's rows do not take it, or the model has other matrices, a note says what was
taken instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitquilt import qtypes
from bitquilt.allocation.recipe import Recipe, from_allocation, read_recipe, resolve_recipe
from bitquilt.errors import UserError
from bitquilt.gguf.header import part_paths
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import kind_of
from bitquilt.targets import TARGETS, Target
from bitquilt.targets.base import StoredMatrix

NEVER_CHOSEN = frozenset({"F32"})
"""Types of matrices that engines want in full, such as the routers of experts."""
NEAR_SAME = {"F16": "BF16", "F64": "F32"}
"""Types of plain numbers that files have → the one of as many bits, or fewer, that is written."""


@dataclass(frozen=True, kw_only=True)
class StoredMix:
    """What types the matrices of a model file have."""

    name: str
    target: Target
    matrices: tuple[StoredMatrix, ...]
    nbytes: int
    """Bytes of everything on disk."""

    @property
    def bits(self) -> dict[str, float]:
        """Type → its bits per weight."""
        return {m.qtype: 8 * m.nbytes / (m.rows * m.columns) for m in self.matrices}

    @property
    def default(self) -> str:
        """The type of most weights."""
        weights: Counter[str] = Counter()
        for matrix in self.matrices:
            weights[matrix.qtype] += matrix.rows * matrix.columns
        return weights.most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True)
class TakenRecipe:
    """A recipe taken from a file, and what did not fit."""

    recipe: Recipe
    notes: tuple[str, ...]
    """A sentence for each thing that the recipe could not take over."""


@dataclass(frozen=True, kw_only=True)
class MatrixPair:
    """A matrix in two files, None in one that lacks it."""

    module: str
    types: tuple[str | None, str | None]
    nbytes: tuple[int, int]

    @property
    def differs(self) -> bool:
        """Whether the types do."""
        return self.types[0] != self.types[1]


def stored_mix(path: Path) -> StoredMix:
    """Read which types a model file has, whoever wrote it.

    Args:
        path: a GGUF file, of whatever architecture, or an MLX directory.

    Raises:
        UserError: it is neither, or is damaged.
    """
    target = next((one for one in TARGETS.values() if one.holds(path)), None)
    if target is None:
        raise UserError(
            f"{path} is not a model file; give a GGUF file or an MLX directory, from any tool"
        )
    matrices = tuple(target.stored(path))
    if not matrices:
        raise UserError(f"{path} has no matrices, so it is not a language model; give another file")
    files = part_paths(path) if path.is_file() else target.files(path)
    nbytes = sum(file.stat().st_size for file in files)
    return StoredMix(name=path.name, target=target, matrices=matrices, nbytes=nbytes)


def taken_recipe(mix: StoredMix, checkpoint: Checkpoint | None = None) -> TakenRecipe:
    """Make a recipe of a file's types.

    Args:
        mix: of the file.
        checkpoint: the model that the recipe is for; the file's own if not given.
    """
    if checkpoint is not None:
        return _for_model(mix, checkpoint)
    notes: dict[str, list[str]] = {}
    chosen = {
        matrix.name: _written(mix, matrix.qtype, matrix.columns, matrix.name, notes)
        for matrix in mix.matrices
        if matrix.qtype not in NEVER_CHOSEN
    }
    default = Counter(chosen.values()).most_common(1)[0][0]
    pin = {name: qtype for name, qtype in chosen.items() if qtype != default}
    return TakenRecipe(recipe=Recipe(default=default, pin=pin), notes=_sentences(notes))


def _for_model(mix: StoredMix, checkpoint: Checkpoint) -> TakenRecipe:
    by_module = {matrix.module: matrix.qtype for matrix in mix.matrices}
    of_kind = _most_by_kind(mix)
    notes: dict[str, list[str]] = {}
    allocation = {}
    for module, (_, columns) in checkpoint.matrices.items():
        found = by_module.get(module)
        if found is None:
            found = of_kind.get(kind_of(module), mix.default)
            notes.setdefault(f"{mix.name} does not have them, so {found} is taken", []).append(
                module
            )
        allocation[module] = _written(mix, found, columns, module, notes)
    extra = [module for module in by_module if module not in checkpoint.matrices]
    if extra:
        notes[f"{checkpoint.name} does not have them, so they are left out"] = extra
    return TakenRecipe(recipe=from_allocation(allocation, checkpoint), notes=_sentences(notes))


def _most_by_kind(mix: StoredMix) -> dict[str, str]:
    """Return the type that most matrices of each kind have."""
    counts: dict[str, Counter[str]] = {}
    for matrix in mix.matrices:
        counts.setdefault(kind_of(matrix.module), Counter())[matrix.qtype] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items()}


def _written(
    mix: StoredMix, qtype: str, columns: int, matrix: str, notes: dict[str, list[str]]
) -> str:
    """Return the type itself, or the nearest in bits that is written and that the rows take."""
    wanted = NEAR_SAME.get(qtype, qtype)
    fitting = {each.name: each.bits for each in qtypes.for_width(columns, mix.target.name)}
    if wanted in fitting:
        return wanted
    superseded = mix.target.superseded.items()
    left_out = {name for width, names in superseded if columns % width == 0 for name in names}
    bits = mix.bits[qtype]
    nearest = min(fitting.keys() - left_out, key=lambda name: (abs(fitting[name] - bits), name))
    why = (
        f"their rows are not a multiple of the block of {qtype}"
        if wanted in qtypes.names(mix.target.name)
        else f"bitquilt does not write {qtype}"
    )
    notes.setdefault(f"{why}, so {nearest} is taken", []).append(matrix)
    return nearest


def _sentences(notes: Mapping[str, list[str]]) -> tuple[str, ...]:
    def told(names: list[str]) -> str:
        return names[0] if len(names) == 1 else f"{len(names)} matrices, like {names[0]}"

    return tuple(f"{told(names)}: {why}" for why, names in notes.items())


def allocation_of(source: Path, checkpoint: Checkpoint | None, target: Target) -> dict[str, str]:
    """Return the type of every matrix of a recipe file or a model file, by the format's names.

    Args:
        source: the file.
        checkpoint: the model that a recipe is for.
        target: the output format that is asked for.

    Raises:
        UserError: the file is a recipe and no model was given, or is one of another format.
    """
    if any(one.holds(source) for one in TARGETS.values()):
        mix = stored_mix(source)
        if mix.target is not target:
            raise UserError(f"{source} is a {mix.target} model, and {target} was asked for")
        return {m.name: m.qtype for m in mix.matrices if m.qtype not in NEVER_CHOSEN}
    if checkpoint is None:
        raise _needs_model(source)
    found = resolve_recipe(read_recipe(source), checkpoint, target.name)
    return {target.matrix_name(module, checkpoint): qtype for module, qtype in found.items()}


def pairs_of(one: StoredMix, other: StoredMix) -> list[MatrixPair]:
    """Put the matrices of two files side by side, in the order of the first."""
    left, right = ({m.module: m for m in mix.matrices} for mix in (one, other))

    def pair(module: str) -> MatrixPair:
        a, b = left.get(module), right.get(module)
        return MatrixPair(
            module=module,
            types=(a.qtype if a else None, b.qtype if b else None),
            nbytes=(a.nbytes if a else 0, b.nbytes if b else 0),
        )

    return [pair(module) for module in dict.fromkeys([*left, *right])]


def unlike_shapes(one: StoredMix, other: StoredMix) -> str:
    """Say which matrix two files have in different shapes, or that they name none alike; empty
    where neither is so.
    """
    shapes = {matrix.module: (matrix.rows, matrix.columns) for matrix in other.matrices}
    if shapes.keys().isdisjoint(matrix.module for matrix in one.matrices):
        return (
            f"{one.name} and {other.name} name no matrix alike: they are of other models, or of a "
            "family of which bitquilt does not know how formats name its matrices, so that none "
            "are put side by side"
        )
    for matrix in one.matrices:
        rows, columns = shapes.get(matrix.module, (matrix.rows, matrix.columns))
        if (rows, columns) != (matrix.rows, matrix.columns):
            return (
                f"the files differ in more than types: {matrix.module} is {matrix.rows:,} × "
                f"{matrix.columns:,} in {one.name} and {rows:,} × {columns:,} in {other.name}"
            )
    return ""


def types_by_module(source: Path, checkpoint: Checkpoint | None) -> dict[str, str]:
    """Return the type of every matrix of a recipe or a model file, by module path.

    Args:
        source: the file.
        checkpoint: the model that a recipe is for.

    Raises:
        UserError: the file is a recipe and no model was given, or fits no output format.
    """
    if any(one.holds(source) for one in TARGETS.values()):
        return {matrix.module: matrix.qtype for matrix in stored_mix(source).matrices}
    if checkpoint is None:
        raise _needs_model(source)
    recipe, refused = read_recipe(source), UserError(f"{source} fits no output format")
    for target in TARGETS:
        try:
            return resolve_recipe(recipe, checkpoint, target)
        except UserError as error:
            refused = error
    raise refused


def _needs_model(source: Path) -> UserError:
    return UserError(
        f"{source} is a recipe, and which matrices it means depends on the model; name the model, "
        "as in `bitquilt recipe export mine.json --for MODEL`"
    )
