"""Grammars that an answer follows: of JSON schemas, regular expressions, choices, GBNF and Lark.

Each function returns a grammar in llguidance's JSON, which
:class:`~bitquilt.talk.sample.AnswerSettings` takes. A model reasons freely:
:func:`beside_reasoning` lets the grammar begin where its reasoning ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, grammar_from, regex_to_lark

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.talk.reasoning import ReasoningStyle

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, as chat templates write it: small models fill an answer with white space where
a grammar lets them, and never come to its end."""
_REASON_LENGTH = 200
_VALUES = ("const", "default", "enum", "examples")
"""Keywords of JSON schemas whose values are JSON, where null is null."""
_NAMES = (
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
)
"""Keywords of JSON schemas in whose values the keys are names, whatever they look like."""
TEXT_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""Formats of texts that a grammar can follow."""
_PLACE = re.compile(
    r"at \d+\(\d+\): failed to compile JSON schema: ([^\n]*)(?:.*?\nerror: ([^\n]*))?.*", re.DOTALL
)
"""Where in a grammar that the caller has never seen a schema of theirs fails."""


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that is valid by a schema.

    Raises:
        UserError: the schema is wrong, or has keywords that a grammar cannot express.
    """
    if not isinstance(schema, Mapping):
        raise _refused("JSON schema", "it is not a JSON object")
    style: Any = JSON_STYLE
    try:
        stated = without_idle(without_nulls(schema))
        grammar = LLMatcher.grammar_from_json_schema(stated, overrides=style)
    except ValueError as error:
        raise _refused("JSON schema", str(error)) from error
    return _checked("JSON schema", grammar)


def without_nulls(schema: Any) -> Any:
    """A JSON schema without the keywords that are null, which some clients write for none."""
    return _without(schema, lambda _, value: value is None)


def without_idle(schema: Any) -> Any:
    """A JSON schema without the keywords that refuse no text, which no grammar needs to follow.

    A format that is not one of JSON Schema's own, such as OpenAPI's ``binary``, is an annotation;
    and names of properties are texts anyway, which zod's schemas of records say.
    """
    return _without(schema, _is_idle)


def _is_idle(keyword: str, value: Any) -> bool:
    if keyword == "format":
        return isinstance(value, str) and value not in TEXT_FORMATS
    return keyword == "propertyNames" and value in ({}, {"type": "string"})


def _without(schema: Any, left_out: Callable[[str, Any], bool]) -> Any:
    """A JSON schema without some of its keywords; the JSON values in it stay as they are."""
    if isinstance(schema, list):
        return [_without(one, left_out) for one in schema]
    if not isinstance(schema, Mapping):
        return schema

    def within(keyword: str, value: Any) -> Any:
        if keyword in _VALUES:
            return value
        if keyword in _NAMES and isinstance(value, Mapping):
            return {name: _without(one, left_out) for name, one in value.items()}
        return _without(value, left_out)

    return {
        keyword: within(keyword, value)
        for keyword, value in schema.items()
        if keyword in _VALUES or not left_out(keyword, value)
    }


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that a regular expression matches as a whole, in Rust's syntax.

    Raises:
        UserError: the expression is wrong.
    """
    try:
        lark = f"start: /{regex_to_lark(pattern, use_ascii='')}/"
    except ValueError as error:
        raise _refused("regular expression", str(error)) from error
    return _checked("regular expression", _grammar(lark))


def choice_grammar(texts: Sequence[str]) -> str:
    """The grammar of one of several texts.

    Raises:
        UserError: there is no text to choose.
    """
    if not texts:
        raise _refused("choice", "there is nothing to choose from")
    lark = "start: " + " | ".join(map(quoted, texts))
    return _checked("choice", _grammar(lark))


def text_grammar(grammar: str) -> str:
    """A grammar that is written out in llama.cpp's GBNF, or in llguidance's Lark.

    Raises:
        UserError: it is neither, or is wrong.
    """
    try:
        lark = grammar_from("grammar", grammar)
    except ValueError as error:
        raise _refused("grammar", str(error)) from error
    return _checked("grammar", _grammar(lark))


def lark_grammar(lark: str) -> str:
    """A grammar in Lark that bitquilt wrote itself, around schemas of a caller.

    Raises:
        UserError: a schema in it is wrong, or has keywords that a grammar cannot express.
    """
    return _checked("JSON schema of a tool", _grammar(lark))


def either(one: str, other: str) -> str:
    """The grammar of answers that follow one grammar or the other."""
    return _grammar("start: @one | @other", one=one, other=other)


def beside_reasoning(engine: Engine, style: ReasoningStyle, thinking: bool, grammar: str) -> str:
    """The grammar of an answer and of the reasoning before it, which may say anything.

    Args:
        engine: of the model.
        style: how the model marks its reasoning.
        thinking: whether it begins inside it.
        grammar: of the answer.
    """
    opens, closes = style.opens, style.closes
    if not (style.tags and opens and closes):
        return grammar
    free, rule = text_until(mark(engine, closes), "reasoning")
    before = f"{free} GAP" if thinking else f"({mark(engine, opens)} {free} GAP)?"
    heads = " | ".join(mark(engine, head) for head in style.heads)
    before += f" ({heads})?" if heads else ""
    lines = (f"start: {before} @answer", r"GAP: /\n{0,2}/", rule)
    return _grammar("\n".join(lines), answer=grammar)


def text_until(end: str, name: str) -> tuple[str, str]:
    """Any text up to a mark, and the mark, in Lark.

    Args:
        end: the mark, as :func:`mark` or :func:`quoted` writes it.
        name: of a rule for it, in small letters.

    Returns:
        What stands for it in other rules, and the rule.
    """
    anything = r"/(.|\n)*/"
    if end.startswith("<["):
        return f"{name.upper()} {end}", f"{name.upper()}: {anything}"
    return name, f"{name}[suffix={end}]: {anything}"


def _grammar(lark: str, **grammars: str) -> str:
    """A grammar of rules in Lark, which may speak of other grammars by their names."""
    known: list[dict[str, Any]] = [{"lark_grammar": lark}]
    for name, grammar in grammars.items():
        first, *others = json.loads(grammar)["grammars"]
        known += [{**first, "name": name}, *others]
    return json.dumps({"grammars": known})


def mark(engine: Engine, tag: str) -> str:
    """A tag in Lark: by the number of its token where it is one, else spelled out.

    Several control tokens, with words between them, are several tags.
    """
    tokens = engine.tokenize(tag)
    if len(tokens) == 1:
        return f"<[{tokens[0]}]>"
    parts = [part for part in re.split(r"(<\|[^|]*\|>)", tag) if part]
    return quoted(tag) if len(parts) == 1 else " ".join(mark(engine, part) for part in parts)


def quoted(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)


def _checked(kind: str, grammar: str) -> str:
    said = LLMatcher.validate_grammar(grammar)
    if said and not said.startswith("WARNING"):
        raise _refused(kind, said)
    return grammar


def _refused(kind: str, reason: str) -> UserError:
    reason = " ".join(_PLACE.sub(r"\1 \2", reason).split()).rstrip(".")[:_REASON_LENGTH]
    return UserError(f"the {kind} cannot be followed: {reason}; change it, or ask without it")
