"""Rounding of a whole model into its layer bank, as many inputs at a time as memory holds.

Matrices that read one input are rounded together, from one factorization of its Hessian. So a run
that was stopped rounds together what it would have rounded together without the stop, and ends
with the same bytes. Only what the bank does not have yet is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitquilt import qtypes
from bitquilt.calibration.block_moments import input_of
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.rounding import kernels
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.hessian import COLUMN_GROUP
from bitquilt.rounding.input_work import (
    ByInput,
    InputWork,
    MemoryUse,
    free_memory,
    memory_of_device,
)
from bitquilt.rounding.layer_bank import (
    ESTIMATED,
    POLISHED,
    ROUNDED,
    Candidates,
    LayerBank,
)
from bitquilt.rounding.round_matrices import kind_of_qtype
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.threads import BackgroundTask

_reported: set[str] = set()
"""Why kernels do not compile here, as far as it has been said."""


def round_layers(
    bank: LayerBank, candidates: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Round what the bank does not have yet, well enough to choose from.

    The first step of rounding is taken: polishing costs several times as much and changes little
    about which type is better than which, so :func:`polish_layers` does it for what was chosen.

    Args:
        bank: where the matrices go.
        candidates: what to round.
        progress: advances by :func:`rounding_work` in all; told by name what could not be rounded
            as usual.
        memory: how much is in memory at once; as the device has room, if not given.

    Raises:
        UserError: a matrix does not fit its type, or its Hessian holds numbers that are not finite.
    """
    missing = _missing(bank, candidates)
    steps = InputWork.round_inputs, InputWork.round_without_hessian
    _fill(bank, missing, progress, memory, *steps)


def estimate_layers(
    bank: LayerBank, candidates: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Estimate what candidates cost, from a few rows of each matrix; no matrix is kept.

    Args:
        bank: where the estimates go, as its ``estimated`` cells.
        candidates: what to estimate; those that the bank has are passed over.
        progress: advances by :func:`rounding_seconds` of the whole matrices.
        memory: how much is in memory at once; as the device has room, if not given.

    Raises:
        UserError: as :func:`round_layers` does.
    """
    missing = _missing(bank, candidates, ESTIMATED)
    steps = InputWork.estimate_inputs, InputWork.estimate_without_hessian
    _fill(bank, missing, progress, memory, *steps)


def polish_layers(
    bank: LayerBank, chosen: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Polish what was chosen, where the bank's method is ``full``; else do nothing.

    Args:
        bank: has all that was chosen.
        chosen: what to polish.
        progress: advances by :func:`polishing_work` in all.
        memory: how much is in memory at once; as the device has room, if not given.
    """
    _fill(bank, _unpolished(bank, chosen), progress, memory, InputWork.polish_inputs)


def finish_layers(
    bank: LayerBank, chosen: Candidates, progress: Progress, memory: MemoryUse | None = None
) -> None:
    """Round what was chosen, and polish it at once where the bank's method is ``full``.

    Args:
        bank: where it goes; what was only rounded of it is not kept beside it.
        chosen: what to finish; what the bank has in its last form is passed over.
        progress: advances by :func:`finishing_work` in all.
        memory: how much is in memory at once; as the device has room, if not given.

    Raises:
        UserError: as :func:`round_layers` does.
    """
    _fill(bank, _unpolished(bank, chosen), progress, memory, InputWork.finish_inputs)
    round_layers(bank, _without_polished(bank, chosen), progress, memory)


def finishing_work(bank: LayerBank, chosen: Candidates) -> float:
    """Return by how much :func:`finish_layers` is going to advance."""
    polishable = {
        module: names
        for readers in _unpolished(bank, chosen).values()
        for module, names in readers.items()
    }
    others = {
        module: [name for name in names if name not in polishable.get(module, ())]
        for module, names in _without_polished(bank, chosen).items()
    }
    return polishing_work(bank, polishable) + rounding_work(bank, others)


def _without_polished(bank: LayerBank, chosen: Candidates) -> Candidates:
    """Return what the bank does not have polished."""
    have = {module: bank.cells(module, POLISHED) for module in chosen}
    return {
        module: [name for name in names if name not in have[module]]
        for module, names in chosen.items()
    }


def rounding_work(bank: LayerBank, candidates: Candidates, folder: str = ROUNDED) -> float:
    """Return by how much :func:`round_layers` is going to advance: what is there costs nothing.

    With the folder ``ESTIMATED`` it is by how much :func:`estimate_layers` does.
    """
    return sum(
        rounding_seconds(name, bank.weights(module), table=module in (EMBEDDING, HEAD))
        for readers in _missing(bank, candidates, folder).values()
        for module, names in readers.items()
        for name in names
    )


def polishing_work(bank: LayerBank, chosen: Candidates) -> float:
    """Return by how much :func:`polish_layers` is going to advance."""
    return sum(
        polishing_seconds(name, bank.weights(module))
        for readers in _unpolished(bank, chosen).values()
        for module, names in readers.items()
        for name in names
    )


def _fill(
    bank: LayerBank,
    todo: dict[str, dict[str, list[str]]],
    progress: Progress,
    memory: MemoryUse | None,
    of_inputs: Callable[[InputWork, Sequence[str], ByInput], None],
    alone: Callable[[InputWork, str, Sequence[str]], None] | None = None,
) -> None:
    """Take a step of the work on inputs, as many at a time as memory is meant for.

    Args:
        bank: where results go.
        todo: input → matrix that reads it → types.
        progress: told of kernels that are missing; the steps advance it.
        memory: how much is in memory at once; as the device has room, with None.
        of_inputs: the step.
        alone: the step for a matrix without a Hessian; where it is None, there is none in ``todo``.
    """
    if todo and bank.rounding != "nearest":
        _say_if_kernels_are_missing(progress)
    with BackgroundTask() as background:
        work = InputWork(bank, progress, background, memory or memory_of_device())
        if alone is not None:
            for owner in [owner for owner in todo if not _takes_feedback(bank, owner)]:
                for module, names in todo.pop(owner).items():
                    alone(work, module, names)
        for owners in work.batches(todo):
            of_inputs(work, owners, todo)
            free_memory()


def _missing(
    bank: LayerBank, candidates: Candidates, folder: str = ROUNDED
) -> dict[str, dict[str, list[str]]]:
    """Return by input what a folder of the bank does not have yet."""
    missing: dict[str, dict[str, list[str]]] = {}
    for module, names in candidates.items():
        have = bank.cells(module, folder).keys()
        if new := [name for name in names if name not in have]:
            missing.setdefault(input_of(module), {})[module] = new
    return missing


def _unpolished(bank: LayerBank, chosen: Candidates) -> dict[str, dict[str, list[str]]]:
    """Return by input what can be polished and is not yet."""
    rough: dict[str, dict[str, list[str]]] = {}
    for module, names in chosen.items():
        owner, have = input_of(module), bank.cells(module, POLISHED)
        polishable = bank.rounding == "full" and _takes_feedback(bank, owner)
        # a float has nothing to polish
        left = [
            name
            for name in names
            if polishable and name not in have and kind_of_qtype(qtypes.get(name)) is not None
        ]
        if left:
            rough.setdefault(owner, {})[module] = left
    return rough


def _say_if_kernels_are_missing(progress: Progress) -> None:
    """Say once in a process, however many banks and formats it rounds for."""
    if compute_device().type != "cuda" or (cause := kernels.compile_error()) is None:
        return
    if cause not in _reported:
        _reported.add(cause)
        instead = "torch's operations round instead, which takes up to three times as long"
        progress.say(f"bitquilt's kernels for GPUs do not compile here ({cause}); {instead}")


def _takes_feedback(bank: LayerBank, owner: str) -> bool:
    """Tell whether error feedback makes sense for what reads an input.

    It does not for an embedding or a head: tokens are read and predicted at places so different
    that one Hessian for all rows does not help (docs/decisions/gptq.md). Nor does it for rows that
    are not a whole number of groups, which take no type but the floats.
    """
    columns = bank.checkpoint.matrices[owner][1]
    return owner not in (EMBEDDING, HEAD) and columns % COLUMN_GROUP == 0
