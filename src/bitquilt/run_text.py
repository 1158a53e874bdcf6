"""The text of one run: which windows of tokens each of its stages reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bitquilt.allocation.allocate import AllocationText
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import (
    Encode,
    HeldOutText,
    calibration_windows,
    encoder,
    held_out_documents,
    held_out_windows,
    mixed_windows,
    races_and_selection,
    search_documents,
    tuning_windows,
)
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.config import AllocationConfig, QuantizeConfig, SearchConfig
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.rounding.tuning.distill import DEFAULT_SCHEDULE


@dataclass(frozen=True, kw_only=True)
class RunText:
    """The windows of tokens that the stages read, each int64 [N, L]; drawn before any work."""

    calibration: Tensor
    folds: Tensor
    """The fold that each window of calibration text is of, int64 [N]."""
    allocation: AllocationText
    closing: HeldOutText
    """Held-out text of the closing figures."""
    tuning: Tensor | None


def draw_text(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    config: AllocationConfig,
    search: SearchConfig | None,
    budget: TextBudget,
    say: Callable[[str], None],
) -> RunText:
    """Cut all windows of a run.

    Args:
        checkpoint: has the tokenizer.
        documents: the calibration text.
        config: names a user's own texts, and what is to be done.
        search: how types are searched for; None where there is nothing to find.
        budget: how much each stage reads.
        say: is told where other text stands in.

    Raises:
        UserError: there is too little text for a stage.
    """
    encode = encoder(checkpoint)

    calibration, folds = calibration_windows(documents, encode, budget.calibration, budget.window)
    held_out = held_out_documents(config.held_out)
    closing, lacking = held_out_windows(held_out, documents, encode, budget.held_out, budget.window)
    quantizing = config if isinstance(config, QuantizeConfig) else None
    if quantizing and lacking:
        say(lacking)
    none = calibration[:0]
    users = documents if config.calibration is not None else ()
    return RunText(
        calibration=calibration,
        folds=folds,
        allocation=AllocationText(interactions=none, search=none, selection=none)
        if search is None
        else _allocation_text(users, calibration, config, search, budget, encode, say),
        closing=closing,
        tuning=_tuning_text(documents, config, budget, encode)
        if quantizing and quantizing.tune
        else None,
    )


def _tuning_text(
    documents: Sequence[Document], config: AllocationConfig, budget: TextBudget, encode: Encode
) -> Tensor:
    """Cut the windows that scales are tuned on, and those of other domains that end the tuning."""
    others = search_documents(config.held_out)
    apart = DEFAULT_SCHEDULE.set_apart(budget.tuning)
    return tuning_windows(documents, others, encode, apart, budget.tuning, budget.window)


def _allocation_text(
    users: Sequence[Document],
    calibration: Tensor,
    config: AllocationConfig,
    search: SearchConfig,
    budget: TextBudget,
    encode: Encode,
    say: Callable[[str], None],
) -> AllocationText:
    """Cut the windows that types are chosen on, of domains that the rounding has not read.

    A user's own calibration text is half of them: it is what the model will be used on.
    """
    races, selection = races_and_selection(search_documents(config.held_out))
    own_races, own_selection = races_and_selection(users)
    count, length = search.windows(budget.search), budget.window
    try:
        raced = mixed_windows(own_races, races, encode, count, length)
    except UserError:
        say("There is little text to search on, so the search reads the same text as the rounding")
        raced = calibration
    # where a race takes too long, the knapsack still has scores corrected for interactions
    interactions = budget.interactions if config.search.method == "race" else 0
    return AllocationText(
        interactions=raced[:interactions],
        search=raced,
        selection=mixed_windows(own_selection, selection, encode, budget.selection, length),
    )
