"""Reasons why a request is not answered: a status, a kind, and one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitquilt.errors import KEYWORDS, UserError, worded

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_TEXT, _WHOLE, _NUMBER = "must be a text", "must be a whole number", "must be a number"
_LIST, _OBJECT, _SWITCH = "must be a list", "must be an object", "must be true or false"
_MUST_BE = {
    "missing": "is missing",
    "string_type": _TEXT,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": "is too large a number",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "too_short": "has {actual_length} items, but must have at least {min_length}",
    "too_long": "has {actual_length} items, but must have at most {max_length}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "greater_than": "must be more than {gt}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "json_invalid": "is not JSON: {error}",
}
"""What pydantic calls an error → what it says of the field that has it."""


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


def not_understood(error: ErrorDetails) -> str:
    """Say in one sentence what is wrong with a field of a request."""
    place = ".".join(str(step) for step in error["loc"]) or "the body"
    facts, kind = error.get("ctx", {}), error["type"]
    if kind == "value_error":
        return f"{place}: {facts['error']}"
    said = _MUST_BE.get(kind)
    return f"{place}: {error['msg']}" if said is None else f"{place} {said.format(**facts)}"
