"""What is odd about a checkpoint, and what it means.

Most of it is about llama4_text, whose fields say less, or other things, than their names.
"""

from __future__ import annotations

import math
import re
from typing import Any

from bitquilt.models.canonical import WRAPPERS
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError
from bitquilt.models.checkpoint import EMBEDDING, Finding

Config = dict[str, Any]

_SUPER_BLOCK = 256
_MARKER = "@@message@@"
_QUOTE_LENGTH = 200
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]")
_ROLES = frozenset({"system", "user", "assistant", "model"})


def audit(
    original: Config, config: Config, shapes: dict[str, tuple[int, ...]]
) -> tuple[Finding, ...]:
    """Findings about a config as published, beside its canonical form and that form's shapes."""
    wrapper = original.get("model_type")
    text = original["text_config"] if wrapper in WRAPPERS else original
    rules = (_wrapper, _llama4, _mlp_widths, _rope_flags, _attn_scale, _missing_moe_layers)
    findings = [finding for rule in rules for finding in rule(text | {"model_type": wrapper})]
    findings += [
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
        without = "the model continues text and takes no messages"
        if where is None:
            return f"There is none; {without}"
        return f"What {where} has is neither a text nor several with a default, so {without}"
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


def _is_llama4(original: Config) -> bool:
    return bool(original["model_type"] == "llama4_text")


def _wrapper(original: Config) -> list[Finding]:
    if original["model_type"] not in WRAPPERS:
        return []
    return [
        Finding(
            "model_type",
            f"{original['model_type']} reads images too; only its language model is kept.",
        )
    ]


def _llama4(original: Config) -> list[Finding]:
    if not _is_llama4(original):
        return []
    target, norm = ("qwen3", "q_norm and k_norm of ones take the place of its weightless QK norm")
    if not original.get("use_qk_norm", True):
        target, norm = "llama", "it has no QK norm"
    return [
        Finding(
            "num_local_experts",
            "Without experts, llama.cpp refuses llama4 (“model cannot have zero experts”); the "
            f"model is rewritten, exactly, to {target}: q and k rows reordered, {norm}.",
        )
    ]


def _mlp_widths(original: Config) -> list[Finding]:
    if not _is_llama4(original) or "intermediate_size_mlp" not in original:
        return []
    return [
        Finding(
            "intermediate_size_mlp",
            f"The MLP is one SwiGLU, {original['intermediate_size_mlp']} wide as its tensors are; "
            f"intermediate_size = {original.get('intermediate_size')} would be the width of "
            "experts, and there are none.",
        )
    ]


def _rope_flags(original: Config) -> list[Finding]:
    flags, layers = original.get("no_rope_layers"), original.get("num_hidden_layers", 0)
    if not _is_llama4(original) or not flags:
        return []
    message = "One flag per layer where 1 means RoPE is on, against the name; all are 1."
    if len(flags) > layers:
        message += (
            f" The list has {len(flags)} flags for {layers} layers: the rest mean nothing, though "
            "transformers 5 refuses to load such a config."
        )
    return [Finding("no_rope_layers", message)]


def _attn_scale(original: Config) -> list[Finding]:
    if not _is_llama4(original) or "attn_scale" not in original:
        return []
    return [
        Finding(
            "attn_scale",
            f"{original['attn_scale']} has no effect: it acts only in layers without RoPE and with "
            "attn_temperature_tuning; attention is scaled by head_dim^-0.5.",
        )
    ]


def _missing_moe_layers(original: Config) -> list[Finding]:
    if not _is_llama4(original) or original.get("moe_layers") is not None:
        return []
    return [
        Finding(
            "moe_layers",
            "Missing, which transformers takes for experts in every layer; with zero experts every "
            "layer is dense, as the tensors are.",
        )
    ]


def _grouped_queries(config: Config) -> list[Finding]:
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    if heads == shared:
        return []
    return [
        Finding(
            "num_key_value_heads",
            f"Grouped queries: {heads} query heads share {shared} KV heads, so k_proj and v_proj "
            f"have 1/{heads // shared} of q_proj's rows.",
        )
    ]


def _sliding_window(config: Config) -> list[Finding]:
    """Mistral 0.1 and some Qwen 2 attend to a window; llama.cpp's architectures do not."""
    window = config.get("sliding_window")
    everywhere = config["model_type"] == "mistral"
    in_some = "sliding_attention" in (config.get("layer_types") or ())
    if config["model_type"] == "gemma3_text" or not window or not (everywhere or in_some):
        return []
    if window >= config["max_position_embeddings"]:
        return []
    return [
        Finding(
            "sliding_window",
            f"The model attends to the last {window} tokens; llama.cpp attends to all of them, so "
            "beyond that length it computes something else.",
        )
    ]


def _tied_head(config: Config, shapes: dict[str, tuple[int, ...]]) -> list[Finding]:
    if not config["tie_word_embeddings"]:
        return []
    embedding = math.prod(shapes[f"{EMBEDDING}.weight"])
    share = embedding / sum(math.prod(shape) for shape in shapes.values())
    return [
        Finding(
            "tie_word_embeddings",
            f"The embedding is the output head too, and {share:.0%} of the weights: its type "
            "counts twice.",
        )
    ]


def _narrow_rows(shapes: dict[str, tuple[int, ...]]) -> list[Finding]:
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    narrow = [shape for shape in matrices if shape[1] % _SUPER_BLOCK]
    if not narrow:
        return []
    widths = ", ".join(str(width) for width in sorted({shape[1] for shape in narrow}))
    return [
        Finding(
            "hidden_size",
            f"{len(narrow)} of {len(matrices)} matrices have rows of {widths}, no multiple of 256: "
            "they take types of 32-blocks (Q4_0, IQ4_NL, Q8_0 …), not K-quants.",
        )
    ]
