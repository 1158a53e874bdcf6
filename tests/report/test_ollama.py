"""Templates of the families that models use, translated, or refused: never nearly right."""

from __future__ import annotations

import re

import pytest

from bitquilt.models import open_checkpoint
from bitquilt.report.ollama import modelfile, turns
from bitquilt.talk.prompt import render_prompt
from tests.factories import CHAT_TEMPLATE, tiny_checkpoint

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index ~ m.role ~ m.content }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
CHATS = (
    [{"role": "user", "content": "Hi {{ there }}"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Why?"},
    ],
)


@pytest.mark.parametrize("template", [CHATML, LLAMA, CHAT_TEMPLATE], ids=["chatml", "llama", "r1"])
def test_translation_gives_the_same_text(template):
    found = turns(template, SPECIAL)
    assert found is not None
    for chat in CHATS:
        meant = render_prompt(template, chat, SPECIAL).removeprefix("<s>")
        assert found.render(chat) == meant
        assert as_ollama(found.go_template(), found.default, chat) == meant


def as_ollama(go: str, default: str | None, chat: list[dict[str, str]]) -> str:
    """Go's template language, as far as ours uses it, executed by rules written out by hand."""
    inside = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}", go, re.S)
    pieces = re.split(r'\{\{ (?:if|else if) eq \.Role "(\w+)" \}\}', inside[1])
    around = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    if default is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": default}, *chat]
    parts = (around[one["role"]].split("{{ .Content }}") for one in chat)
    return "".join(
        f"{before}{one['content']}{after}" for one, (before, after) in zip(chat, parts, strict=True)
    )


@pytest.mark.parametrize("template", [NUMBERED, NO_SYSTEM], ids=["numbered", "no system"])
def test_what_is_more_than_text_around_messages_is_refused(template):
    assert turns(template, SPECIAL) is None


def test_modelfile_has_the_default_system_message_and_all_stops(tmp_path):
    text = modelfile(open_checkpoint(tiny_checkpoint(tmp_path, layers=1)), "tiny.gguf")
    assert text is not None
    assert text.startswith("FROM ./tiny.gguf\n")
    assert 'SYSTEM """Please reason step by step' in text
    stops = re.findall(r'PARAMETER stop "(.*)"', text)
    assert set(stops) == {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}
    assert "PARAMETER num_ctx 1024" in text
