"""Copies of many tensors from one device to another."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from bitquilt.runtime.device import side_stream


def moved(
    groups: Sequence[dict[str, Tensor]],
    device: torch.device,
    after: torch.cuda.Event | None = None,
) -> list[dict[str, Tensor]]:
    """Copy named tensors to a device, in threads: one thread finds pages of memory too slowly.

    Args:
        groups: tensors by name, on any device; a thread copies one group at a time.
        device: where to.
        after: the copies wait for this event (see :func:`bitquilt.runtime.device.record_event`)
            and for nothing that the GPU is asked to do later.
    """

    def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with side_stream(after):
            return {name: tensor.to(device) for name, tensor in tensors.items()}

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(move, groups))
