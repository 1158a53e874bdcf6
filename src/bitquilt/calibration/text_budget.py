"""How much text each stage reads: as much as a laptop has time for, decided by the model's size.

All passes read windows of ``WINDOW`` tokens. A window costs about 2 · parameters · WINDOW floating
point operations forward; each stage is given a number of those, within bounds that keep its
statistics meaningful for the largest model and its time short for the smallest.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 512
"""Tokens that a window has."""
LEAST_RACED = 240
"""Windows that a search reads before it has learnt anything."""
LEAST_INTERACTIONS = 8
"""Windows that tell what matrices cost together from noise."""


@dataclass(frozen=True, kw_only=True)
class TextBudget:
    """Windows read by each stage."""

    calibration: int
    """Hessians and importance."""
    gradients: int
    """The backward pass; the first of the calibration windows."""
    held_out: int
    """The closing figures; as many again where there is held-out text of the other kind."""
    sequential: int
    """Sequential correction; the first of the calibration text."""
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

    def of_statistics(self) -> dict[str, int]:
        """What the statistics of a work directory depend on; other artefacts are named by text."""
        names = ("calibration", "gradients", "window")
        return {name: getattr(self, name) for name in names}


def text_budget(parameters: int, on_gpu: bool = False) -> TextBudget:
    """The budget for a model of that many parameters; a GPU has more time for races."""
    teraflop = 2e-12 * parameters * WINDOW

    def windows(budget: float, least: int, most: int) -> int:
        return max(least, min(most, round(budget / teraflop)))

    races = windows(900, 0, 880) if on_gpu else windows(6, 0, 480)
    races = races if races >= LEAST_RACED else 0
    interactions = windows(120 if on_gpu else 0.6, 0, 16)
    return TextBudget(
        calibration=windows(3, 12, 24),
        gradients=4,
        held_out=windows(1, 8, 16),
        sequential=windows(10, 24, 96),
        tuning=windows(1000, 128, 2112),
        interactions=interactions if interactions >= LEAST_INTERACTIONS else 0,
        search=128 if on_gpu else 64,
        selection=windows(2, 8, 32),
        races=races,
    )
