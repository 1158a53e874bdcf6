"""bitquilt: mixed-precision GGUF and MLX models of an exact size, running in stock engines.

Four functions do what the command line does: :func:`quantize`, :func:`plan`, :func:`inspect`,
:func:`evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitquilt.allocation.plan import plan as plan
    from bitquilt.evaluation.compare import evaluate as evaluate
    from bitquilt.models.inspection import inspect as inspect
    from bitquilt.pipeline import quantize as quantize

__version__ = "0.2.0"
__all__ = ["__version__", "evaluate", "inspect", "plan", "quantize"]

_HOMES = {
    "evaluate": "bitquilt.evaluation.compare",
    "inspect": "bitquilt.models.inspection",
    "plan": "bitquilt.allocation.plan",
    "quantize": "bitquilt.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a function when it is asked for: torch takes seconds, ``--help`` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
