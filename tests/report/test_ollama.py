"""Templates of the families that models use, translated, or refused: never nearly right."""

from __future__ import annotations

import re

import pytest

from bitquilt.engines import open_engine
from bitquilt.models import open_checkpoint
from bitquilt.report.ollama import modelfile, turns
from bitquilt.talk.prompt import compose, render_prompt
from tests.factories import CHAT_TEMPLATE, tiny_checkpoint
from tests.models.tiny_gguf import write_gguf
from tests.report.conftest import quantized

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
        meant = render_prompt(template, chat, SPECIAL)
        assert found.render(chat) == meant
        assert as_ollama(found.go_template(), found.default, chat) == meant


def as_ollama(go: str, default: str | None, chat: list[dict[str, str]]) -> str:
    """Go's template language, as far as ours uses it, executed by rules written out by hand."""
    loop = r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}"
    start, inside = re.fullmatch(loop, go, re.S).groups()
    pieces = re.split(r'\{\{ (?:if|else if) eq \.Role "(\w+)" \}\}', inside)
    around = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    if default is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": default}, *chat]
    parts = (around[one["role"]].split("{{ .Content }}") for one in chat)
    return start + "".join(
        f"{before}{one['content']}{after}" for one, (before, after) in zip(chat, parts, strict=True)
    )


CURLY = CHATML.replace("<|im_start|>", "{{m}}")
QUOTED = CHATML.replace("<|im_end|>", '"""')


@pytest.mark.parametrize(
    "template",
    [NUMBERED, NO_SYSTEM, CURLY, QUOTED],
    ids=["numbered", "no system", "marks of Go's", "quotes of a Modelfile"],
)
def test_what_is_more_than_text_around_messages_is_refused(template):
    assert turns(template, SPECIAL) is None


def test_modelfile_has_the_default_system_message_and_all_stops(tmp_path):
    original = tiny_checkpoint(tmp_path, layers=1)
    path = quantized(original, tmp_path / "tiny.gguf")
    text = modelfile(open_checkpoint(original), path)
    assert text is not None
    assert text.startswith("FROM ./tiny.gguf\n")
    assert 'SYSTEM """Please reason step by step' in text
    stops = re.findall(r'PARAMETER stop "(.*)"', text)
    assert set(stops) == {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}
    assert "PARAMETER num_ctx 1024" in text


BARE = CHAT_TEMPLATE.replace("{{- bos_token }}", "")
AS_SMOLLM = (  # its start token is the one that begins every turn
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|begin_of_text|>system\n"
    "You help.<|eot_id|>\n' }}{% endif %}{{ '<|begin_of_text|>' + m.role + '\n' + m.content + "
    "'<|eot_id|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin_of_text|>assistant\n' }}"
    "{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "add_bos", "pre", "possible"),
    [
        (CHAT_TEMPLATE, True, "llama-bpe", True),
        (CHAT_TEMPLATE, False, "llama-bpe", True),
        (CHAT_TEMPLATE, None, "llama-bpe", True),
        (CHAT_TEMPLATE, None, "qwen2", True),
        (BARE, True, "llama-bpe", False),
        (BARE, False, "llama-bpe", True),
        (BARE, None, "qwen2", True),
        (BARE, None, "llama-bpe", False),
        (AS_SMOLLM, False, "smollm", True),
        (AS_SMOLLM, None, "smollm", True),
        (AS_SMOLLM, True, "smollm", True),
    ],
)
def test_ollama_reads_the_tokens_of_our_prompt(tmp_path, template, add_bos, pre, possible):
    """Ollama renders, and llama.cpp tokenizes with a start token where the file asks for one."""
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    (directory / "chat_template.jinja").write_text(template)
    path = write_gguf(directory, tmp_path / "tiny.gguf", pre=pre, add_bos=add_bos)
    text = modelfile(open_checkpoint(path), path)
    assert (text is not None) == possible
    if text is None:  # a start token too many would come whatever the template is
        return
    go = re.search(r'TEMPLATE """(.*?)"""', text, re.S)[1]
    default = re.search(r'SYSTEM """(.*?)"""', text, re.S)
    with open_engine(path) as engine:
        for chat in CHATS:
            said = as_ollama(go, default and default[1], chat)
            assert engine.tokenize(said, add_special=True) == compose(engine, chat).tokens


TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
THINK = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "own"),
    [(CHATML, False), (TOOLS + CHATML, True), (CHATML + THINK, True), (NUMBERED + TOOLS, True)],
    ids=["plain", "tools", "thinking", "untranslatable with tools"],
)
def test_a_template_with_tools_or_thinking_stays_the_models_own(tmp_path, template, own):
    directory = tiny_checkpoint(tmp_path, "llama", layers=1)
    (directory / "chat_template.jinja").write_text(template)
    path = write_gguf(directory, tmp_path / "tiny.gguf", pre="qwen2", add_bos=False)
    lines = modelfile(open_checkpoint(path), path).splitlines()
    assert any(line.startswith("TEMPLATE") for line in lines) != own
    assert not any(line.startswith("SYSTEM") for line in lines)
    assert 'PARAMETER stop "<|eot_id|>"' in lines
    assert any(line.startswith("#") for line in lines) == own
