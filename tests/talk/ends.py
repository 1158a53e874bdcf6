"""Ends of answers, for tests that need no model."""

from __future__ import annotations

from typing import Any

from bitquilt.talk.events import End


def ended(**fields: Any) -> End:
    """An empty answer that ended by itself, but for what is given."""
    plain: dict[str, Any] = {
        "finish_reason": "stop",
        "reasoning": "",
        "answer": "",
        "final": None,
        "closed": None,
        "rollbacks": 0,
        "prompt_tokens": 1,
        "prefilled_tokens": 1,
        "tokens": 1,
        "thinking_tokens": 0,
        "discarded_tokens": 0,
    }
    return End(**plain | fields)
