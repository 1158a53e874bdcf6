"""Llama 3.x: bare JSON as the whole answer, or anything after ``<|python_tag|>``."""

from __future__ import annotations

import ast
import re

from bitquilt.talk.tool_calls.call import NO_CALL, Call, CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import calls_in, json_calls, json_end, skip_space

TAG = "<|python_tag|>"
_FIRST_KEY = re.compile(r'\{\s*"([^"]*)"')
_KEYS = ("name", "type", "function", "parameters", "arguments")
CODE_TOOLS = ("code_interpreter", "python", "ipython")
"""Names under which a client can offer to run the code that the model writes after the tag."""


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    place = skip_space(text, len(TAG) if text.startswith(TAG) else 0)
    if text[place : place + 1] != "{":
        return _read_code(text, schemas) if over else None
    key = _FIRST_KEY.match(text, place)
    if key is not None and key[1] not in _KEYS:
        return NO_CALL  # an answer in JSON can be told as it comes
    if (end := json_end(text, place)) is None:
        return None
    calls = calls_in(text[place:end])
    # an answer that is JSON anyhow begins like a call: only the names tell the two apart
    if calls is None or not (place or all(call.name in schemas for call in calls)):
        return NO_CALL
    return Found(end, calls)


def _read_code(text: str, schemas: Schemas) -> Found:
    """Read ``brave_search.call(query="…")``, or code where a tool runs it."""
    code = text.removeprefix(TAG).strip()
    try:
        tree = ast.parse(code, mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute):
            name = ast.unparse(tree.func.value)
            arguments = {one.arg: ast.literal_eval(one.value) for one in tree.keywords if one.arg}
            if name in schemas:
                return Found(len(text), [Call.of(name, arguments)])
    except (SyntaxError, ValueError):
        pass
    runner = next((name for name in CODE_TOOLS if name in schemas), None)
    return Found(len(text), [Call.of(runner, {"code": code})]) if runner and code else NO_CALL


def _force(schemas: Schemas, marks: Marks) -> str:
    return f"call: {json_calls(schemas, 'parameters')}"


LLAMA_3 = CallStyle(
    name="Llama 3", starts=(TAG,), first=("{",), between=" \n;", read=_read, force=_force
)
