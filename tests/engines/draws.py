"""What draws should look like: the distribution by transformers' own filters, and a test of fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bitquilt.engines import Sampling

DRAWS = 20_000
SETTINGS = {
    "temperature": Sampling(temperature=0.7),
    "top-k": Sampling(temperature=1.3, top_k=20),
    "top-p": Sampling(temperature=0.8, top_p=0.9),
    "min-p": Sampling(temperature=1.5, min_p=0.05),
    "all": Sampling(temperature=1.2, top_k=50, top_p=0.95, min_p=0.02),
}


def expected(logits: npt.NDArray[np.float32], settings: Sampling) -> npt.NDArray[np.float64]:
    """Probabilities [V] of float32 logits [V] under a setting."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(settings.min_p))
    scores = warpers(None, torch.from_numpy(logits)[None].double())[0]
    probabilities: npt.NDArray[np.float64] = scores.softmax(-1).numpy()
    return probabilities


def chi_square(drawn: Sequence[int], probabilities: npt.NDArray[np.float64]) -> float:
    """The probability of a fit as bad as that of these draws; rare tokens count together."""
    counts = np.bincount(drawn, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0, "a token was drawn that the filters drop"
    wanted = probabilities * len(drawn)
    common = wanted >= 5
    counts = np.append(counts[common], counts[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    freedom = len(counts) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))
