"""What is odd about a checkpoint, and what it means."""

from __future__ import annotations

from typing import Any

from bitquilt.checkpoint.checkpoint import Finding


def audit(
    original: dict[str, Any],
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    template: str | None,
    template_file: str | None,
) -> tuple[Finding, ...]:
    """Findings about a config as published, beside its canonical form."""
    return ()
