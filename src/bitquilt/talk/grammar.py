"""Grammars that an answer follows: of JSON schemas, regular expressions, choices, GBNF and Lark.

Each function returns a grammar in llguidance's JSON, which
:class:`~bitquilt.talk.sample.AnswerSettings` takes. A model reasons freely:
:func:`beside_reasoning` lets the grammar begin where its reasoning ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, grammar_from, regex_to_lark

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.talk.prompt import Prompt

WHITE_SPACE = r" ?|\n {0,40}"
"""White space between the parts of JSON: indented or on one line. Small models fill an answer with
white space where a grammar lets them."""
_REASON_LENGTH = 200


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that is valid by a schema.

    Raises:
        UserError: the schema is wrong, or has keywords that a grammar cannot express.
    """
    options: Any = {"whitespace_pattern": WHITE_SPACE}
    if not isinstance(schema, Mapping):
        raise _refused("JSON schema", "it is no JSON object")
    try:
        grammar = LLMatcher.grammar_from_json_schema(dict(schema), overrides=options)
    except ValueError as error:
        raise _refused("JSON schema", str(error)) from error
    return _checked("JSON schema", grammar)


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that a regular expression matches as a whole, in Rust's syntax.

    Raises:
        UserError: the expression is wrong.
    """
    try:
        lark = f"start: /{regex_to_lark(pattern, use_ascii='')}/"
    except ValueError as error:
        raise _refused("regular expression", str(error)) from error
    return _checked("regular expression", LLMatcher.grammar_from_lark(lark))


def choice_grammar(texts: Sequence[str]) -> str:
    """The grammar of one of several texts.

    Raises:
        UserError: there is no text to choose.
    """
    if not texts:
        raise _refused("choice", "there is nothing to choose from")
    lark = "start: " + " | ".join(map(quoted, texts))
    return _checked("choice", LLMatcher.grammar_from_lark(lark))


def text_grammar(grammar: str) -> str:
    """A grammar that is written out in llama.cpp's GBNF, or in llguidance's Lark.

    Raises:
        UserError: it is neither, or is wrong.
    """
    try:
        found = grammar_from("grammar", grammar)
    except ValueError as error:
        raise _refused("grammar", str(error)) from error
    return _checked("grammar", found)


def lark_grammar(lark: str) -> str:
    """A grammar in Lark that bitquilt wrote itself, around schemas of a caller.

    Raises:
        UserError: a schema in it is wrong, or has keywords that a grammar cannot express.
    """
    return _checked("JSON schema of a tool", LLMatcher.grammar_from_lark(lark))


def beside_reasoning(engine: Engine, prompt: Prompt, grammar: str) -> str:
    """The grammar of an answer and of the reasoning before it, which may say anything."""
    opens, closes = prompt.style.opens, prompt.style.closes
    if not (prompt.style.tags and opens and closes):
        return grammar
    close = mark(engine, closes)
    free = f"FREE {close}" if close.startswith("<[") else "free"
    reasoning = f"{free} GAP" if prompt.thinking else f"({mark(engine, opens)} {free} GAP)?"
    lark = f"start: {reasoning} @answer\n" + r"GAP: /\n{0,2}/" + "\n"
    anything = r"/(.|\n)*/"
    lark += f"FREE: {anything}" if free != "free" else f"free[suffix={close}]: {anything}"
    (answer,) = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": lark}, {**answer, "name": "answer"}]})


def mark(engine: Engine, tag: str) -> str:
    """A tag in Lark: by the number of its token where it is one, else spelled out."""
    tokens = engine.tokenize(tag)
    return f"<[{tokens[0]}]>" if len(tokens) == 1 else quoted(tag)


def quoted(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)


def _checked(kind: str, grammar: str) -> str:
    said = LLMatcher.validate_grammar(grammar)
    if said and not said.startswith("WARNING"):
        raise _refused(kind, said)
    return grammar


def _refused(kind: str, reason: str) -> UserError:
    reason = " ".join(reason.split()).rstrip(".")[:_REASON_LENGTH]
    return UserError(f"the {kind} cannot be followed: {reason}; change it, or ask without it")
