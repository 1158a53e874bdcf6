"""Chat templates render as transformers renders them."""

from __future__ import annotations

import pytest
from tests.factories import CHAT_TEMPLATE, tiny_tokenizer

from bitquilt.errors import UserError
from bitquilt.talk.prompt import render

CONVERSATION = [
    {"role": "user", "content": "What is 2 < 3?"},
    {"role": "assistant", "content": "True & so on."},
    {"role": "user", "content": "Why?"},
]
SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
HELPERS = (
    "{%- for m in messages %}\n  {%- if loop.index > 2 %}{% break %}{% endif %}\n"
    "{{ {'say': m.content} | tojson }}\n{% endfor %}{{ strftime_now('%Y') }}"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, HELPERS])
def test_as_transformers(template: str) -> None:
    tokenizer = tiny_tokenizer()
    meant = tokenizer.apply_chat_template(
        CONVERSATION, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render(template, CONVERSATION, SPECIAL) == meant


def test_refusals() -> None:
    with pytest.raises(UserError, match="no chat template"):
        render(None, CONVERSATION, SPECIAL)
    with pytest.raises(UserError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", CONVERSATION, SPECIAL)
    with pytest.raises(UserError, match="refuses the conversation"):
        render("{{ ''.__class__.__mro__ }}", CONVERSATION, SPECIAL)
