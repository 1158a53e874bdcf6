"""Nearest rounding, family by family: importing this package registers the fit of every type."""

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
)
