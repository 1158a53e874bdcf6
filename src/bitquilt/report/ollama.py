"""The model's chat template in Ollama's language, and an Ollama Modelfile with it.

Ollama reads the chat template in a GGUF file where a Modelfile has none, and offers the tools and
the thinking that it finds there (its ``server/images.go`` and ``server/routes.go``). So a template
with either stays the model's own. Any other is said in Go's template language, which every version
reads. Rendering a conversation of marks shows what stands between messages. The result is rendered
for several conversations and must give the same text as the model's template; if it does not, there
is no Modelfile rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from bitquilt.engines.engine import Sampling
from bitquilt.engines.tokenizer import HubTokenizer
from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.gguf.tokenizer import adds_bos, start_token
from bitquilt.models.chat_template import Message, template_variables
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.talk.prompt import render_prompt
from bitquilt.talk.reasoning import style_of

SYSTEM, USER, ANSWER, AGAIN = "⟦system⟧", "⟦user⟧", "⟦answer⟧", "⟦again⟧"
CONTEXT = 8192
"""Tokens of context; Ollama's own default is too short for a model that reasons."""

_CONVERSATION: tuple[Message, ...] = (
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": AGAIN},
)
_TRIED: tuple[tuple[Message, ...], ...] = (
    _CONVERSATION,
    _CONVERSATION[:2],
    _CONVERSATION[1:2],
    _CONVERSATION[1:],
    (*_CONVERSATION, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Why?"}),
)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The texts around messages, without a start token that Ollama adds by itself."""

    start: str
    """The text before all messages."""
    before_system: str
    after_system: str
    before_user: str
    after_user: str
    """The text up to where the answer begins."""
    after_answer: str
    default: str | None
    """The system message of a conversation that has none of its own; None without one."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, as Ollama will write it."""
        if self.default is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        around = {
            "system": (self.before_system, self.after_system),
            "user": (self.before_user, self.after_user),
            "assistant": ("", self.after_answer),
        }
        parts = ((around[message["role"]], message["content"]) for message in messages)
        said = (before + content + after for (before, after), content in parts)
        return self.start + "".join(said)

    @property
    def sayable(self) -> bool:
        """Whether a Modelfile can say the texts: they have no marks of Go's, and no long quotes."""
        around = (self.before_system, self.after_system, self.before_user, self.after_user)
        texts = (self.start, *around, self.after_answer, self.default or "")
        marks = ("{{", '"""')
        return not any(t.endswith(("{", '"')) or any(m in t for m in marks) for t in texts)

    def go_template(self) -> str:
        """Write the turns in Go's template language, for a Modelfile."""
        return (
            f"{self.start}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{self.before_system}{{{{ .Content }}}}'
            f"{self.after_system}"
            f'{{{{ else if eq .Role "user" }}}}{self.before_user}{{{{ .Content }}}}'
            f"{self.after_user}"
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{self.after_answer}'
            "{{ end }}{{ end }}"
        )


def turns(template: str, special_tokens: Mapping[str, str], added: str = "") -> Turns | None:
    """The texts that a chat template writes around messages; None if it does more than that.

    Args:
        template: Jinja source as models publish it.
        special_tokens: ``bos_token`` and ``eos_token``, which templates write.
        added: the start token, where Ollama puts it before any text; a template that does not
            begin with it cannot be had without it, and there are no turns then.
    """

    def put(messages: Sequence[Message]) -> str:
        text = render_prompt(template, messages, special_tokens)
        if not text.startswith(added):
            raise ValueError(f"the text does not begin with {added}")
        return text.removeprefix(added)

    bos = special_tokens.get("bos_token", "")
    for start in dict.fromkeys(("", bos)):
        with suppress(UserError, ValueError):  # a conversation is refused, or a message left out
            if found := _turns(put, start):
                return found
    return None


def _turns(put: Callable[[Sequence[Message]], str], start: str) -> Turns | None:
    """Find the turns of texts that all begin with ``start``; None where others come out.

    Raises:
        UserError: the template refuses a conversation.
        ValueError: a text begins otherwise, or lacks a message.
    """

    def after_start(messages: Sequence[Message]) -> str:
        text = put(messages)
        if not text.startswith(start):
            raise ValueError(f"the text does not begin with {start}")
        return text.removeprefix(start)

    head, after_system, after_user, after_answer, _ = _between(after_start(_CONVERSATION))
    first = after_start(_CONVERSATION[1:2]).partition(USER)[0]
    default = None
    before_user = first
    if not after_system.endswith(first):  # there is a system message even where none is given
        before_user = _common_end(after_system, after_answer)
        default = first.removeprefix(head).removesuffix(after_system)
    found = Turns(
        start=start,
        before_system=head,
        after_system=after_system.removesuffix(before_user),
        before_user=before_user,
        after_user=after_user,
        after_answer=after_answer.removesuffix(before_user),
        default=default,
    )
    same = all(found.render(messages) == put(messages) for messages in _TRIED)
    return found if same and found.sayable else None


def _between(text: str) -> list[str]:
    """The texts before, between and after the marks.

    Raises:
        ValueError: a mark is not there.
    """
    found = []
    for mark in (SYSTEM, USER, ANSWER, AGAIN):
        before, text = text.split(mark)
        found.append(before)
    return [*found, text]


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    length = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return one[len(one) - length :]


def modelfile(checkpoint: Checkpoint, path: Path) -> str | None:
    """An Ollama Modelfile for a GGUF file of the checkpoint.

    Returns:
        Its text; None for a model without a chat template, or with one that has neither tools nor
        thinking, and that Ollama's language cannot express.
    """
    if checkpoint.tokenizer_dir is None or checkpoint.chat_template is None:
        return None
    tokenizer = HubTokenizer(
        checkpoint.tokenizer_dir, checkpoint.config, checkpoint.generation_config
    )
    lines = [f"FROM ./{path.name}"]
    if has_tools_or_thinking(checkpoint.chat_template):
        lines.append(
            "# Ollama takes the chat template, with its tools and thinking, from the file."
        )
    else:
        header = read_header(path)
        start = start_token(header) if adds_bos(header) else ""
        found = turns(checkpoint.chat_template, tokenizer.info.special_tokens, start)
        if found is None:
            return None
        lines.append(f'TEMPLATE """{found.go_template()}"""')
        if found.default:
            lines.append(f'SYSTEM """{found.default}"""')
    context = min(CONTEXT, int(checkpoint.config["max_position_embeddings"]))
    lines.append(f"PARAMETER num_ctx {context}")
    lines += [f"PARAMETER {name} {value:g}" for name, value in _sampling(tokenizer.info.sampling)]
    ends = filter(tokenizer.ends_turn, range(tokenizer.info.vocabulary))
    stops = [tokenizer.control_text(token) for token in ends]
    lines += [f'PARAMETER stop "{text}"' for text in stops if text]
    return "\n".join(lines) + "\n"


def has_tools_or_thinking(template: str) -> bool:
    """Whether a chat template takes tools, or has a place for reasoning."""
    switches = {"tools", "enable_thinking", "thinking"}
    return bool(template_variables(template) & switches or style_of(template, "").tags)


def _sampling(settings: Sampling) -> list[tuple[str, float]]:
    """The sampling settings that the model's authors recommend, by Ollama's names."""
    names = {
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "repeat_penalty": settings.repetition_penalty,
    }
    default = Sampling()
    ignored = {"top_k": default.top_k, "min_p": default.min_p, "repeat_penalty": 1.0}
    return [(name, value) for name, value in names.items() if value != ignored.get(name)]
