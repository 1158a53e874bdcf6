"""Where tensors are computed with."""

from __future__ import annotations

import torch


def compute_device() -> torch.device:
    """CUDA if there is a GPU, else the CPU.

    Apple's Metal could run the rounding, which needs no float64, but nobody has tried it there.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
