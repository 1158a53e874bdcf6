"""What is odd about a checkpoint, and what it means.

What is odd about one family is in its file of :mod:`bitquilt.models.architectures`.
"""

from __future__ import annotations

import math
import re

from gguf import QK_K

from bitquilt.models.architectures import REWRITES, WRAPPERS, architecture_of
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError
from bitquilt.models.checkpoint import EMBEDDING, Finding
from bitquilt.models.config import ModelConfig

_MARKER = "@@message@@"
_QUOTE_LENGTH = 200
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]")
_ROLES = frozenset({"system", "user", "assistant", "model"})


def audit(
    original: ModelConfig, config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> tuple[Finding, ...]:
    """Findings about a config as published, beside its canonical form and that form's shapes."""
    wrapper = original.get("model_type")
    text = original["text_config"] if wrapper in WRAPPERS else original
    rewrite = REWRITES.get(str(wrapper))
    findings = [
        *_wrapper(str(wrapper)),
        *(rewrite.findings(text) if rewrite else ()),
        *_grouped_queries(config),
        *_sliding_window(config),
        *_tied_head(config, shapes),
        *_narrow_rows(shapes),
    ]
    return tuple(findings)


def audit_template(template: str | None, where: str | None) -> tuple[Finding, ...]:
    """Findings about the chat template: whether there is one, where, and what it adds.

    Args:
        template: Jinja source; None where there is none that is a text.
        where: the file that holds it; None where no file says anything of one.
    """
    return (Finding("chat_template", f"{_about(template, where)}."),)


def _about(template: str | None, where: str | None) -> str:
    if template is None:
        without = "the model continues plain text and cannot chat"
        if where is None:
            return f"There is none; {without}"
        return f"The one in {where} is neither a text nor a list with a default, so {without}"
    try:
        compiled = ChatTemplate.compile(template)
    except ChatTemplateError as error:
        return f"The one in {where} cannot be rendered: {error.reason}"
    try:
        added = added_text(compiled)
    except ChatTemplateError as error:
        return f"The one in {where} refuses a question without a system message: {error.reason}"
    if not added:
        return f"In {where}"
    quoted = added if len(added) <= _QUOTE_LENGTH else added[:_QUOTE_LENGTH] + "…"
    return f"In {where}; without a system message it adds its own: “{quoted}”"


def added_text(template: ChatTemplate) -> str:
    """The words that a chat template puts before a lone user message, special tokens left out.

    Raises:
        ChatTemplateError: the template refuses a conversation of one user message.
    """
    question = [{"role": "user", "content": _MARKER}]
    rendered = template.render(question, bos_token="", eos_token="")
    before = _SPECIAL_TOKEN.sub("\n", rendered.partition(_MARKER)[0])
    lines = (line.strip() for line in before.splitlines())
    return " ".join(line for line in lines if line and line not in _ROLES)


def _wrapper(model_type: str) -> list[Finding]:
    if model_type not in WRAPPERS:
        return []
    return [
        Finding(
            "model_type",
            f"{model_type} reads images too; only its language model is quantized.",
        )
    ]


def _grouped_queries(config: ModelConfig) -> list[Finding]:
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    if heads == shared:
        return []
    return [
        Finding(
            "num_key_value_heads",
            f"Grouped queries: {heads} query heads share {shared} KV "
            f"head{'s' if shared > 1 else ''}, so k_proj and v_proj have 1/{heads // shared} of "
            "q_proj's rows.",
        )
    ]


def _sliding_window(config: ModelConfig) -> list[Finding]:
    """Mistral 0.1 and some Qwen 2 attend to a window; llama.cpp's architectures do not."""
    window = config.get("sliding_window")
    family = architecture_of(config)
    in_some = "sliding_attention" in (config.get("layer_types") or ())
    if family.runs_windows or not window or not (family.window_everywhere or in_some):
        return []
    if window >= config["max_position_embeddings"]:
        return []
    return [
        Finding(
            "sliding_window",
            f"The model attends to the last {window} tokens, but llama.cpp attends to all tokens. "
            "In longer texts, llama.cpp therefore computes something else.",
        )
    ]


def _tied_head(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> list[Finding]:
    if not config["tie_word_embeddings"]:
        return []
    embedding = math.prod(shapes[f"{EMBEDDING}.weight"])
    share = embedding / sum(math.prod(shape) for shape in shapes.values())
    return [
        Finding(
            "tie_word_embeddings",
            f"The embedding is also the output head, and {share:.0%} of the weights, so its "
            "type matters twice.",
        )
    ]


def _narrow_rows(shapes: dict[str, tuple[int, ...]]) -> list[Finding]:
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    narrow = [shape for shape in matrices if shape[1] % QK_K]
    if not narrow:
        return []
    widths = ", ".join(str(width) for width in sorted({shape[1] for shape in narrow}))
    return [
        Finding(
            "hidden_size",
            f"{len(narrow)} of {len(matrices)} matrices have rows whose length ({widths}) is not "
            f"a multiple of {QK_K}: they can take types with blocks of 32 (Q4_0, IQ4_NL, Q8_0 …), "
            "but not K-quants.",
        )
    ]
