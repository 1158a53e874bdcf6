"""What the log says of a draft model: that its drafts are left out, or used again."""

from __future__ import annotations

import logging

from bitquilt.talk.events import End

TELLING_TOKENS = 64
"""Shorter answers tell nothing: their first steps only time drafts."""
DRAFTED_SHARE = 0.1
"""Drafts are in use where they had at least this share of an answer's tokens."""


class DraftLog:
    """Follows the answers of a server, and logs where the use of drafts changes."""

    def __init__(self, draft: str) -> None:
        """Take the path of the draft model."""
        self._draft, self._in_use = draft, True

    def ended(self, end: End) -> None:
        """Take note of an answer that has ended."""
        if end.tokens < TELLING_TOKENS:
            return
        in_use = end.drafted_tokens >= DRAFTED_SHARE * end.tokens
        if in_use == self._in_use:
            return
        self._in_use = in_use
        why = (
            "they make answers faster again"
            if in_use
            else "they make answers no faster here (`bitquilt pair` measures why), or mlx-lm "
            "wrote several answers at once"
        )
        logging.getLogger(__name__).warning(
            "drafts of %s are %s: %d of the last answer's %d tokens were drafted, and %s",
            self._draft,
            "used again" if in_use else "left out",
            end.drafted_tokens,
            end.tokens,
            why,
        )
