"""Packages that come with an extra of ours: whether they are here, without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from bitquilt.errors import UserError


def require_ray() -> None:
    """Refuse a search on many machines where Ray is missing.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray; install it with `pip install 'bitquilt[ray]'`")
