"""Reasons why a request is not answered: a status, a kind, and one sentence."""

from __future__ import annotations

from typing import Any

from bitquilt.errors import KEYWORDS, UserError, worded


class RefusedError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, kind: str, sentence: str) -> None:
        """Take HTTP's status, the error type in OpenAI's words, and what the caller can do."""
        super().__init__(sentence)
        self.status, self.kind, self.sentence = status, kind, sentence

    def to_dict(self) -> dict[str, Any]:
        """The body of the response, in the form of OpenAI's API."""
        return {"error": {"message": self.sentence, "type": self.kind, "code": self.status}}


def for_clients(error: UserError) -> str:
    """The sentence of an error of the model or its engine; options are fields of a request."""
    return worded(error.sentence, _in_request)


def _in_request(flag: str, value: str | None) -> str:
    """Name an option as a field of a request: ``"max_tokens": 10``."""
    if flag == "--no-chat-template":
        return "POST /v1/completions"
    field = f'"{KEYWORDS.get(flag, flag)}"'
    return field if value is None else f"{field}: {value}"


def invalid(sentence: str, status: int = 400) -> RefusedError:
    """The error for a request that cannot be answered as it is."""
    return RefusedError(status, "invalid_request_error", sentence)
