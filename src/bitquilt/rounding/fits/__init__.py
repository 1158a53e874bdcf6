"""Fits: scales and nearest codes of least weighted error, one function for each family of types.

In: weights and their importance, [R, C] each. Out: codes and scales, as the type unpacks them.
Importing this package registers the fit of every type (:func:`.family.fit_family`).
"""

from __future__ import annotations

from bitquilt.rounding.fits import (  # noqa: F401
    affine,
    blocks32,
    floats,
    iq4,
    iquants,
    kquants_mins,
    kquants_signed,
    mxfp4,
    nvfp4,
)
