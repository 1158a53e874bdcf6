"""Nearest rounding: scales are fitted by importance, and each weight goes to its nearest level.

Each family of types has its fit in a module of :mod:`bitquilt.rounding.fits`.

Letters: R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.qtypes.qtype import QuantType, Unpacked
from bitquilt.rounding.fits.family import fit_family

LEAST_IMPORTANCE = 1e-6
"""The least importance, as a part of the mean: columns that the text never reached need it too."""
HALF_LARGEST = 65504.0
"""The largest half-precision number. Weights beyond it may be out of reach of a format's scales."""


def fit(qtype: QuantType, weight: Tensor, importance: Tensor | None) -> Unpacked:
    """Round a matrix onto a type, each weight to its nearest level.

    Args:
        qtype: where to.
        weight: float32 [R, C].
        importance: float32 [C], mean square of each input, or [R, C] where rows read different
            inputs; None weighs all inputs alike.

    Raises:
        UserError: the row length does not fit, or a weight is out of the type's range.
    """
    qtype.check_fits(weight.shape[1])
    fields = fit_family(qtype, weight.float(), _relative(importance, weight))
    largest = torch.linalg.vector_norm(weight, ord=torch.inf).item()
    if not _held(qtype, fields, largest):
        wider = "F32" if qtype.name == "BF16" else "BF16"
        raise UserError(
            f"{qtype.name} cannot hold a weight as large as {largest:.3g}; give this matrix the "
            f"type {wider}"
        )
    return fields


def _held(qtype: QuantType, fields: Unpacked, largest: float) -> bool:
    """Tell whether scales are finite and reach the largest weight."""
    scales = [field for field in fields.values() if field.is_floating_point()]
    finite = all(bool(scale.isfinite().all()) for scale in scales)
    if not finite or largest <= HALF_LARGEST:
        return finite
    return bool(qtype.decode(fields).abs().amax() > largest / 2)


def _relative(importance: Tensor | None, weight: Tensor) -> Tensor:
    """Importance [R, C] with mean 1 in a row and nothing at zero, where the weight is."""
    if importance is None:
        return torch.ones(weight.shape[1], device=weight.device).expand_as(weight)
    mean = importance.float().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    relative = (importance.float() / mean).clamp_min(LEAST_IMPORTANCE).to(weight.device)
    return relative.expand_as(weight)
