"""Chat templates render as transformers renders them, and no system prompt means none."""

from __future__ import annotations

import pytest

from bitquilt import demo
from bitquilt.errors import UserError
from bitquilt.talk.prompt import NO_SYSTEM, SYSTEM_PROMPTS, compose, plain, render_prompt
from bitquilt.talk.reasoning import MAGISTRAL, PLAIN, THINK, UP_TO_BOX
from tests.factories import CHAT_TEMPLATE, tiny_tokenizer
from tests.talk.book import Book, reciting

CONVERSATION = [
    {"role": "user", "content": "What is 2 < 3?"},
    {"role": "assistant", "content": "True & so on."},
    {"role": "user", "content": "Why?"},
]
ASKED = [{"role": "user", "content": "Why?"}]
SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
HELPERS = (
    "{%- for m in messages %}\n  {%- if loop.index > 2 %}{% break %}{% endif %}\n"
    "{{ {'say': m.content} | tojson }}\n{% endfor %}{{ strftime_now('%Y') }}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%") + "{# </think> #}"
DEMO = (demo.path() / "chat_template.jinja").read_text()


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, HELPERS, CHATML, DEMO])
def test_as_transformers(template: str) -> None:
    tokenizer = tiny_tokenizer()
    meant = tokenizer.apply_chat_template(
        CONVERSATION, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render_prompt(template, CONVERSATION, SPECIAL) == meant


def test_refusals() -> None:
    with pytest.raises(UserError, match="no chat template"):
        render_prompt(None, CONVERSATION, SPECIAL)
    with pytest.raises(UserError, match="roles must alternate"):
        render_prompt("{{ raise_exception('roles must alternate') }}", CONVERSATION, SPECIAL)
    with pytest.raises(UserError, match="refuses the conversation"):
        render_prompt("{{ ''.__class__.__mro__ }}", CONVERSATION, SPECIAL)


def test_no_system_prompt_means_none() -> None:
    """MobileLLM-R1's template puts its sentence in where there is none."""
    assert "step by step" in render_prompt(DEMO, ASKED, SPECIAL)
    assert render_prompt(DEMO, [NO_SYSTEM, *ASKED], SPECIAL) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render_prompt(CHATML, [NO_SYSTEM, *ASKED], SPECIAL) == render_prompt(
        CHATML, ASKED, SPECIAL
    )


def test_a_template_that_wants_a_user_gets_an_empty_system_prompt() -> None:
    fussy = DEMO + "{% if messages | length == 0 %}{{ raise_exception('no user') }}{% endif %}"
    assert "step by step" not in render_prompt(fussy, [NO_SYSTEM, *ASKED], SPECIAL)


def test_how_the_reasoning_will_be_marked() -> None:
    def style(template: str, *messages: dict[str, str]) -> tuple[object, bool]:
        prompt = compose(Book(reciting(""), template), messages or ASKED)
        return prompt.style, prompt.thinking

    asks_for_box = {"role": "system", "content": SYSTEM_PROMPTS["boxed"]}
    quotes = {"role": "user", "content": "What do <think> and [THINK] mean? <think>"}
    assert style(DEMO) == (UP_TO_BOX, True)
    assert style(DEMO, NO_SYSTEM, *ASKED) == (PLAIN, False)
    assert style(CHATML, asks_for_box, *ASKED) == (UP_TO_BOX, True)
    assert style(CHATML, quotes) == (PLAIN, False)
    assert style(THINKING) == (THINK, True)
    assert style(CHATML + "{# </think> #}", quotes) == (THINK, False)
    assert style(CHATML + "{# [/THINK] #}", quotes) == (MAGISTRAL, False)


def test_plain_text_is_continued() -> None:
    prompt = plain(Book(reciting("")), "\\boxed{ <think>")
    assert (prompt.style, prompt.thinking) == (PLAIN, False)
