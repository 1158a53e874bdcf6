"""The log says when drafts are left out, once, and when they are used again."""

from __future__ import annotations

import logging

from bitquilt.serve.draft_log import DraftLog
from bitquilt.talk.events import End


def answer(tokens: int, drafted: int) -> End:
    return End(
        finish_reason="stop",
        reasoning="",
        answer="",
        final=None,
        closed=None,
        rollbacks=0,
        prompt_tokens=9,
        prefilled_tokens=9,
        tokens=tokens,
        thinking_tokens=0,
        discarded_tokens=0,
        drafted_tokens=drafted,
    )


def test_what_changes_is_told_once(caplog):
    log = DraftLog("small.gguf")
    with caplog.at_level(logging.WARNING, "bitquilt"):
        for tokens, drafted in [(200, 90), (12, 0), (300, 6), (300, 5), (200, 80)]:
            log.ended(answer(tokens, drafted))
    assert caplog.messages == [
        "drafts of small.gguf are left out: 6 of the last answer's 300 tokens were drafted, "
        "and they make answers no faster here (`bitquilt pair` measures why), or mlx-lm wrote "
        "several answers at once",
        "drafts of small.gguf are used again: 80 of the last answer's 200 tokens were "
        "drafted, and they make answers faster again",
    ]
