"""What an answer has to be, as OpenAI's, vLLM's and llama.cpp's clients ask for it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, model_validator

from bitquilt.errors import UserError
from bitquilt.serve.errors import for_clients, invalid
from bitquilt.serve.messages import Lenient
from bitquilt.talk.grammar import choice_grammar, json_grammar, regex_grammar, text_grammar

Schema = dict[str, Any]
ANY_OBJECT: Schema = {"type": "object"}


class NamedSchema(Lenient):
    """A JSON schema as OpenAI's API wraps it."""

    name: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")


class ResponseFormat(Lenient):
    """``response_format``: text, any JSON object, or JSON of a schema."""

    type: str = "text"
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    """llama.cpp takes one beside ``json_object``."""
    value: Schema | str | None = None
    """What text-generation-inference calls the schema, or the regular expression."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, fields: Any) -> Any:
        return {"type": fields} if isinstance(fields, str) else fields


class StructuredOutputs(Lenient):
    """vLLM's ``structured_outputs``."""

    json_: Schema | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Structured(Lenient):
    """The fields of a request that say what its answer has to be."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: Schema | None = None
    grammar: str | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_grammar(cls, fields: Any) -> Any:
        """Read a grammar of text-generation-inference's as the format that it is."""
        if not (isinstance(fields, dict) and isinstance(fields.get("grammar"), dict)):
            return fields
        rest = {name: value for name, value in fields.items() if name != "grammar"}
        return {"response_format": fields["grammar"], **rest}

    def answer_grammar(self) -> str | None:
        """The grammar that the answer follows; None where it may be anything.

        Raises:
            RefusedError: it cannot be followed, or several are asked for.
        """
        asked = [one for one in (*self._formats(), *self._grammars()) if one is not None]
        if len(asked) > 1 and (some := _json(ANY_OBJECT)) in asked:
            asked.remove(some)  # a schema beside it says more
        if len(asked) > 1:
            raise invalid("the answer can follow one format only; ask for one schema or grammar")
        return asked[0] if asked else None

    def _formats(self) -> list[str | None]:
        """What ``response_format`` asks for."""
        format_ = self.response_format or ResponseFormat()
        if format_.type == "text":
            return []
        if format_.type in ("json_object", "json"):
            return [_json(format_.schema_ or format_.value or ANY_OBJECT)]
        if format_.type == "regex" and isinstance(format_.value, str):
            return [_made(regex_grammar, format_.value)]
        if format_.type == "json_schema":
            named = format_.json_schema
            if (schema := (named and named.schema_) or format_.schema_ or format_.value) is None:
                raise invalid("response_format.json_schema.schema is missing; put the schema there")
            return [_json(schema)]
        raise invalid(
            f"response_format.type {format_.type!r} is unknown; "
            "it is text, json_object, json_schema, or regex with a value"
        )

    def _grammars(self) -> list[str | None]:
        """What vLLM's and llama.cpp's own fields ask for."""
        outputs = self.structured_outputs or StructuredOutputs()
        schemas = (self.json_schema, self.guided_json, outputs.json_)
        found: list[str | None] = [_json(one) for one in schemas if one is not None]
        if outputs.json_object:
            found.append(_json(ANY_OBJECT))
        for make, values in (
            (regex_grammar, (self.guided_regex, outputs.regex)),
            (choice_grammar, (self.guided_choice, outputs.choice)),
            (text_grammar, (self.grammar, self.guided_grammar, outputs.grammar)),
        ):
            found += [_made(make, value) for value in values if value is not None]
        return found


def _json(schema: Schema | str) -> str:
    """The grammar of a schema, which some clients send as text."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise invalid(f"the JSON schema is not JSON: {error}") from error
    return _made(json_grammar, schema)


def _made(make: Any, stated: Any) -> str:
    try:
        grammar: str = make(stated)
    except UserError as error:
        raise invalid(for_clients(error)) from error
    return grammar
