"""Refit of the scales that a row stores in floating point, under the whole Hessian.

A decoded row is linear in them (d, dmin, m; MLX's scales and biases), so the best under the whole
Hessian solve a small system per row. They are rounded to what the file stores, and a row keeps its
old ones where that made it worse.

Letters: L inputs, R rows of all together, as many of each, C columns, B blocks that a field has
along a row, P floats of a row in all fields.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import QuantType, Unpacked
from bitquilt.rounding import kernels

RIDGE = 1e-5
"""This part of a row's diagonal is added to it: what two floats share leaves it nearly singular."""
SYSTEMS = {"cpu": 1 << 26, "cuda": 1 << 28}
"""The most numbers in the systems of rows that are solved together: 32,768 columns in blocks of 32
make a million for each row."""
DEVICE_PULLED = 1 << 26
"""The most numbers in memory for blocks that are worked out together; on a CPU each goes alone."""


def refit(qtype: QuantType, fields: Unpacked, weight: Tensor, hessians: Tensor) -> Unpacked:
    """Return the fields with scales of less error E H Eᵀ, where there are such; codes stay.

    Args:
        qtype: of the fields.
        fields: of R rows: those of the first input, then those of the second, …
        weight: float32 [R, C].
        hessians: damped, float32 [L, C, C].
    """
    if not (floats := _floats(fields)):
        return fields
    unknowns = sum(field.shape[1] for field in floats.values())
    at_once = max(1, SYSTEMS[hessians.device.type] // unknowns**2)
    parts = []
    for own, rows in _parts(len(hessians), len(weight), at_once):
        some = {name: field[rows] for name, field in fields.items()}
        parts.append(_refit(qtype, some, weight[rows], hessians[own]))
    return {name: torch.cat([part[name] for part in parts]) for name in fields}


def _parts(inputs: int, rows: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield which inputs, and which of all rows, go together: a part of one, or some whole ones."""
    each = rows // inputs
    if each > most:
        for i in range(inputs):
            for start in range(i * each, (i + 1) * each, most):
                yield slice(i, i + 1), slice(start, min(start + most, (i + 1) * each))
        return
    step = max(1, most // max(1, each))
    for i in range(0, inputs, step):
        yield slice(i, i + step), slice(i * each, (i + step) * each)


def _refit(qtype: QuantType, fields: Unpacked, weight: Tensor, hessians: Tensor) -> Unpacked:
    """Refit some rows of a type that has floats."""
    floats = _floats(fields)
    shares = [_share(qtype, fields, floats, name) for name in floats]
    pull = _times_hessians(weight - qtype.decode(fields), hessians)
    # what a unit of each float would gain, and how two of them interact
    gains = torch.cat([_by_block(pull, share) for share in shares], 1)
    system = _interactions(shares, hessians)
    old = torch.cat([field.float() for field in floats.values()], 1)
    new = _stored(old + _solved(system, gains), floats)
    moved = torch.cat([field.float() for field in new.values()], 1) - old
    saved = 2 * (moved * gains).sum(1) - torch.einsum("rp,rpq,rq->r", moved, system, moved)
    better = (saved > 0).unsqueeze(1)
    return fields | {name: torch.where(better, new[name], floats[name]) for name in floats}


def _times_hessians(rows: Tensor, hessians: Tensor) -> Tensor:
    """Multiply rows [R, C] with the Hessian [C, C] of each one's input."""
    if len(hessians) == 1:
        return rows @ hessians[0]
    return torch.bmm(rows.view(len(hessians), -1, rows.shape[1]), hessians).flatten(0, 1)


def _floats(fields: Unpacked) -> Unpacked:
    return {name: field for name, field in fields.items() if field.is_floating_point()}


def _share(qtype: QuantType, fields: Unpacked, floats: Unpacked, name: str) -> Tensor:
    """Return what one unit of a field's floats contributes to each weight: [R, B, C / B]."""
    unit = {other: torch.full_like(field, other == name) for other, field in floats.items()}
    # [R, C] -> [R, B, C / B]
    return torch.unflatten(qtype.decode(fields | unit), 1, (floats[name].shape[1], -1))


def _by_block(pull: Tensor, share: Tensor) -> Tensor:
    """Sum pull [R, C] times share [R, B, C / B] over each block: [R, B]."""
    sums: Tensor = torch.linalg.vecdot(pull.view_as(share), share)
    return sums


def _interactions(shares: list[Tensor], hessians: Tensor) -> Tensor:
    """Return the system [R, P, P] of the floats of all fields, which have as many blocks each."""
    rows, blocks, width = shares[0].shape
    system = hessians.new_empty(rows, len(shares), blocks, len(shares), blocks)
    on_cpu = hessians.device.type == "cpu"
    together = 1 if on_cpu else max(1, DEVICE_PULLED // (rows * hessians.shape[1]))  # n
    for b in range(0, blocks, together):
        some = slice(b, b + together)
        # only from this block on, for the system is symmetric: [n C / B, C'] -> [n, C / B, C']
        slab = hessians[:, b * width : some.stop * width, b * width :].unflatten(1, (-1, width))
        for i, share in enumerate(shares):
            # [n, R, C'] -> [n, R, B', C / B]
            own = share[:, some].transpose(0, 1)
            pulled = _times_slabs(own, slab.transpose(0, 1)).unflatten(2, (-1, width))
            for j, other in enumerate(shares):
                sums = _dots(pulled, other[:, b:])
                system[:, i, some, j, b:] = sums.transpose(0, 1)
                system[:, j, b:, i, some] = sums.permute(1, 2, 0)
    return system.flatten(3, 4).flatten(1, 2)


def _times_slabs(shares: Tensor, slabs: Tensor) -> Tensor:
    """Multiply shares [n, R, C / B] with the rows of Hessians [n, L, C / B, C']: [n, R, C']."""
    if slabs.shape[1] == 1:
        return torch.matmul(shares, slabs[:, 0])
    return torch.matmul(shares.unflatten(1, (slabs.shape[1], -1)), slabs).flatten(1, 2)


def _dots(pulled: Tensor, share: Tensor) -> Tensor:
    """Multiply and sum over blocks: [n, R, B, C / B] and [R, B, C / B] → [n, R, B]."""
    if kernels.available_for(pulled):
        return kernels.dots(pulled, share)
    sums: Tensor = torch.linalg.vecdot(pulled, share)
    return sums


def _solved(system: Tensor, gains: Tensor) -> Tensor:
    """Solve for the change of all floats [R, P] that gains most."""
    diagonal = system.diagonal(dim1=1, dim2=2)
    # blocks whose codes are all zero have no say, and no change
    ridge = (RIDGE * diagonal).clamp_min(torch.finfo(torch.float32).tiny)
    # one that is not positive definite to the last bit makes numbers that gain nothing
    lower, _ = torch.linalg.cholesky_ex(system + torch.diag_embed(ridge))
    change = torch.cholesky_solve(gains.unsqueeze(2), lower).squeeze(2)
    return torch.nan_to_num(change, 0.0, 0.0, 0.0)


def _stored(values: Tensor, floats: Unpacked) -> Unpacked:
    """New floats [R, P] as the fields that they would be stored as."""
    parts = values.split([field.shape[1] for field in floats.values()], 1)
    rounded = {}
    for part, (name, field) in zip(parts, floats.items(), strict=True):
        stored = torch.float16 if field.dtype == torch.float32 else field.dtype
        rounded[name] = part.to(stored).to(field.dtype)
    return rounded
