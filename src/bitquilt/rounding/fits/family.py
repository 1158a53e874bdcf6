"""The interface of fits: what each family of types implements for nearest rounding.

Letters: R rows, C columns.
"""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from bitquilt.qtypes.qtype import QuantType, Unpacked


@singledispatch
def fit_family(qtype: QuantType, weight: Tensor, importance: Tensor) -> Unpacked:
    """Fit scales and codes of least error Σ importance · (level − weight)², near enough.

    One implementation per family of types, found by the type of ``qtype``.

    Args:
        qtype: where to.
        weight: float32 [R, C], on any device; its fields are made there.
        importance: float32 [R, C], positive, mean 1 in a row.

    Raises:
        TypeError: no fit is registered for the family.
    """
    raise TypeError(f"no fit is registered for {type(qtype).__name__}")
