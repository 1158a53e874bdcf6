"""What figures depend on beside their inputs."""

from __future__ import annotations

import platform
from importlib.metadata import version

from bitquilt import __version__

LIBRARIES = ("torch", "transformers", "xllamacpp", "mlx-lm")


def versions() -> dict[str, str]:
    """Give the versions of this package, Python and the libraries that compute, where installed."""
    found = {library: installed(library) for library in LIBRARIES}
    own = {"bitquilt": __version__, "python": platform.python_version()}
    return own | {library: number for library, number in found.items() if number}


def installed(library: str) -> str | None:
    """The version of a library; None where it is missing."""
    try:
        return version(library)
    except ModuleNotFoundError:
        return None
