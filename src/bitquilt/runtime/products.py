"""How matrices are multiplied: in float32, or faster and rougher where the device can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRODUCTS = {"highest": "float32", "high": "TF32", "medium": "bfloat16"}
"""torch's words → what the inputs of matrix products are rounded to."""


def fast_precision(device: torch.device) -> str:
    """Return how to multiply float32 matrices fast on a device: one of :data:`PRODUCTS`."""
    if device.type == "cuda":
        return "high"
    can = torch.cpu.get_capabilities()
    return "medium" if can.get("amx_bf16") or can.get("avx512_bf16") else "highest"


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Multiply float32 matrices in a precision, one of :data:`PRODUCTS`, within the body."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
