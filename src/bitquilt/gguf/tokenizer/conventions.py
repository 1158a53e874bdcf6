"""llama.cpp's words for what a tokenizer does, and what they mean.

How text is split before byte-level BPE is compiled into llama.cpp under names that files carry
(``llama-vocab.cpp``, ``llm_tokenizer_bpe``). It is stated again here, name → regular expressions
for reading, and steps of a tokenizer.json → name for writing.
"""

from __future__ import annotations

from dataclasses import dataclass

SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""GGUF's word for a special token → Hugging Face's."""

TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
"""The default template; and the names of others, which have keys of their own."""

END_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Special tokens with which llama.cpp ends a turn, in the order in which they are used."""

END_TEXTS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>"),
    )
)
"""Tokens of these texts end a turn in every llama.cpp since 2025, whatever a file says."""

FIM_TEXTS = {
    "fim_pad": {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
    "fim_rep": {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    "fim_sep": {"<|file_sep|>"},
}
"""Role for filling in the middle → texts by which llama.cpp finds its token; where the model has
none of them, the role is free for another token that ends its turns."""

NORMALIZER, NFC, NO_NORMALIZER = "tokenizer.bitquilt.normalizer", "NFC", "none"
"""Our key for what a tokenizer does to text before it splits it, which llama.cpp does not do, and
its values. It is there where the pre-tokenizer's name says something else."""

_COMPOSED = frozenset(("qwen2", "qwen35", "command-r"))
"""Pre-tokenizers of models whose tokenizers bring text into Unicode's form NFC: in transformers,
Qwen2Tokenizer, Qwen3_5Tokenizer and CohereTokenizer do."""

SPACE = "\u2581"
"""How SentencePiece writes a space."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _TAIL
_QWEN2 = _WORDS + r"|\p{N}" + _TAIL
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class Splitting:
    """What a pre-tokenizer name stands for."""

    patterns: tuple[str, ...]
    """Applied one after the other, each inside the pieces of the one before."""
    whole_words: bool = False
    """Whether a piece that is a token needs no merges (``ignore_merges``)."""
    adds_bos: bool = False
    """Whether a beginning-of-text token is added where the file does not say."""


_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")

_LLAMA3_SPLITTING = Splitting((_LLAMA3,), whole_words=True, adds_bos=True)
_SINGLE_DIGITS = Splitting((r"\p{N}", _GPT2))

SPLITTINGS: dict[str, Splitting] = {
    "default": Splitting((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Splitting((_GPT2,)),
    "llama3": _LLAMA3_SPLITTING,
    "llama-v3": _LLAMA3_SPLITTING,
    "llama-bpe": _LLAMA3_SPLITTING,
    "smaug-bpe": Splitting((_LLAMA3,)),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "deepseek-coder": Splitting(_DEEPSEEK_CODER),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "qwen2": Splitting((_QWEN2,)),
    "deepseek-r1-qwen": Splitting((_QWEN2,)),
    "tekken": Splitting((_TEKKEN,), whole_words=True, adds_bos=True),
}
"""``tokenizer.ggml.pre`` → splitting."""


def is_composed(stated: str | None, pre: str | None) -> bool:
    """Whether a tokenizer reads text in form NFC, by a file's normalizer and its pre-tokenizer."""
    return pre in _COMPOSED if stated is None else stated == NFC


def _regexes(name: str) -> tuple[str, ...]:
    """The splitting steps of a pre-tokenizer, each as a regular expression."""
    return tuple(f"regex {pattern}" for pattern in SPLITTINGS[name].patterns)


PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (_regexes("llama-bpe"), True): "llama-bpe",
    (_regexes("llama-bpe"), False): "smaug-bpe",
    (_regexes("qwen2"), False): "qwen2",
    (_regexes("tekken"), True): "tekken",
    (("digits", "gpt-2"), False): "smollm",
    ((*_regexes("deepseek-coder")[:-1], "digits"), False): "deepseek-coder",
    (_regexes("deepseek-coder"), False): "deepseek-coder",
    (("punctuation", "gpt-2", "numbers", "regex [0-9][0-9][0-9]"), False): "falcon",
    (_regexes("falcon"), False): "falcon",
    (_regexes("smollm"), False): "smollm",
    (("gpt-2",), False): "gpt-2",
    (_regexes("gpt-2"), False): "gpt-2",
}
"""(splitting steps, whether whole words skip the merges) → llama.cpp's name for it."""
