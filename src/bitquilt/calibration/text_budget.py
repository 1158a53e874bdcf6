"""How much text each stage reads: as much as a laptop has time for, decided by the model's size.

All passes read windows of ``WINDOW`` tokens. A window costs about 2 · parameters · WINDOW floating
point operations forward; each stage is given a number of those, within bounds that keep its
statistics meaningful for the largest model and its time short for the smallest.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitquilt.errors import UserError

WINDOW = 512
"""Tokens that a window has."""
KEPT = 22 << 30
"""Bytes of a GPU's memory for what the blocks read of the calibration text, at most."""
KEPT_SHARE = 4
"""They are no more than this part of its memory."""
LEAST_RACED = 240
"""Windows that a search reads before it has learnt anything."""
LEAST_INTERACTIONS = 8
"""Windows that tell what matrices cost together from noise."""
MOST_CALIBRATION = 384
"""Windows of calibration text beyond which a CPU gains nothing by more."""
OPTIONAL = ("tuning", "interactions", "races")
"""Stages that may read no text."""


@dataclass(frozen=True, kw_only=True)
class TextBudget:
    """Windows read by each stage."""

    calibration: int
    """Hessians and gradients: read forward and back; and the sequential correction."""
    held_out: int
    """The closing figures; as many again where there is held-out text of the other kind."""
    tuning: int
    """Tuning of scales; the first of the calibration text, each read once."""
    interactions: int
    """What matrices cost together, at one budget; 0 where there is no time for any."""
    search: int
    """Windows of text that mixes are measured on."""
    selection: int
    """Text that decides between a few mixes: neither the search nor the closing figures read it."""
    races: int
    """Windows that a search reads in all, every mix's counted; 0 where there is no time for one."""
    window: int = WINDOW
    """Tokens of a window."""

    def __post_init__(self) -> None:
        """Refuse counts with which a stage would read nothing that it needs.

        Raises:
            UserError: a count is negative, or 0 and not that of an optional stage.
        """
        for name, count in vars(self).items():
            least = 0 if name in OPTIONAL else 1
            if count < least:
                raise UserError(f"TextBudget({name}={count}) is too little; give {least} or more")

    def of_statistics(self) -> dict[str, int]:
        """What the statistics of a work directory depend on; other artefacts are named by text."""
        names = ("calibration", "window")
        return {name: getattr(self, name) for name in names}


def text_budget(
    parameters: int, hidden: int, gpu_bytes: int = 0, factor: float = 1.0
) -> TextBudget:
    """The budget for one model; a GPU has more time for statistics and for races.

    Args:
        parameters: weights of the model.
        hidden: numbers that a GPU keeps of what its blocks read of one token.
        gpu_bytes: the memory of the GPU that does the work; 0 where the CPU does it.
        factor: how much more than usual there is time for, of the stages that gain by more text.
    """
    on_gpu, teraflop = gpu_bytes > 0, 2e-12 * parameters * WINDOW

    def windows(budget: float, least: int, most: int) -> int:
        return max(least, min(most, round(budget / teraflop)))

    def more(budget: float, least: int, most: int) -> int:
        return windows(factor * budget, least, round(most * max(1.0, factor)))

    races = more(900, 0, 880) if on_gpu else more(6, 0, 480)
    races = races if races >= LEAST_RACED else 0
    interactions = windows(factor * (120 if on_gpu else 0.6), 0, 16)
    kept = min(KEPT, gpu_bytes // KEPT_SHARE) // (2 * hidden * WINDOW)
    held = max(12, min(round(512 * min(1.0, factor)), kept))
    return TextBudget(
        calibration=held if on_gpu else min(MOST_CALIBRATION, more(2.5, 12, 48)),
        held_out=windows(1, 8, 16),
        tuning=windows(1000, 128, 2112),
        interactions=interactions if interactions >= LEAST_INTERACTIONS else 0,
        search=128 if on_gpu else 64,
        selection=windows(2, 8, 32),
        races=races,
    )
