"""Packages that come with an extra of ours: whether they are here, without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from bitquilt.errors import UserError


def require_resvg() -> None:
    """Refuse plots as PNG where resvg is missing, which draws them.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("resvg_py") is None:
        raise UserError(
            "PNG plots need resvg, which is not installed; pip install 'bitquilt[png]', or leave "
            "out --png"
        )


def require_ray() -> None:
    """Refuse a search on many machines where Ray is missing.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray; install it with `pip install 'bitquilt[ray]'`")
