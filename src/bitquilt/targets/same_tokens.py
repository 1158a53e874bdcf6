"""Calibration, tokenizer.json and the engine read the same tokens, or work does not begin.

The texts are made to tell tokenizers apart: spaces, digits, words, scripts, every token that was
added, and a conversation by the chat template.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.errors import EngineMissingError, UserError
from bitquilt.gguf.container import encode_header, read_container, read_pairs
from bitquilt.gguf.tokenizer import NORMALIZER, is_composed
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.targets.base import Target, Tokenize

TEXTS = {
    "spaces": "  two  spaces,\ttabs\t\tand\u00a0others \n\n \n   x\r\n  end  ",
    "digits": "0 12 345 6789 1234567 12.5% 3/4 1,000.00 ١٢٣ ४५६ ½ ² x1y22",
    "words": "I'LL say it's a CamelCase XMLParser, don't; naïve café, über-Größe ÉTÉ l'été",
    "scripts": "你好，世界 こんにちは 안녕하세요 Привет γειά שלום سلام 🙂👩‍🚀 ﷽ —“quoted”…",
    "code": "def f(x):\n\treturn x**2  # ok\n\nif (a[i]!=b){} http://a.b/c?d=e&f <b>$1</b> ~|^`",
    "letters of their own width and form": "ﬁn Ａｂｃ １２ Å K ℌ",
}
"""What a text is about → the text; all of them are in Unicode's form NFC but the last."""
UNCOMPOSED = "e\u0301 e\u0323\u0302 \u1100\u1161 A\u030a"
"""Letters and their accents apart, which a normalizer puts together."""
MARKED = "नमस्ते สวัสดี বাংলা தமிழ் مُحَمَّد שָׁלוֹם"
"""Words with vowels that are marks on their letters; Unicode has most of these in no other form."""
_CONVERSATION = (
    {"role": "user", "content": "What is 347 + 585?\n\nAnswer  briefly."},
    {"role": "assistant", "content": "It is 932."},
    {"role": "user", "content": "  And é?"},
)
_TOGETHER = 64
"""Added tokens in one text."""


@dataclass(frozen=True, kw_only=True)
class OwnTokens:
    """What a model's own tokenizer makes of texts."""

    name: str
    """Of the model, for errors."""
    tokenizer: Any
    """transformers' one, with the tokens of tokenizer.json."""
    template: str | None
    """The chat template."""

    def tokenize(self, text: str, add_special: bool) -> Sequence[int]:
        """Encode a text."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special)
        return tokens


def refuse_other_tokens(checkpoint: Checkpoint, targets: Sequence[Target]) -> list[str]:
    """Compare the tokens that a model is calibrated with and those that engines will read.

    An engine that is not installed is not asked.

    Returns:
        Sentences about text that an engine reads otherwise without harm.

    Raises:
        UserError: an engine would read other tokens.
    """
    if checkpoint.tokenizer_dir is None:
        return []
    tokenizer, template = load_tokenizer(checkpoint.tokenizer_dir), checkpoint.chat_template
    own = OwnTokens(name=checkpoint.name, tokenizer=tokenizer, template=template)
    notes: list[str] = []
    for target in targets:
        try:
            with target.engine_tokenizer(checkpoint) as theirs:
                remedy = f"give a model whose tokenizer {target.engine} knows, or another --to"
                notes += compare_tokens(own, theirs, target.engine, remedy)
        except EngineMissingError:
            continue
    return notes


def refuse_other_tokens_of(
    path: Path, name: str, directory: Path, template: str | None
) -> list[str]:
    """Compare the tokens of a Hugging Face directory with those that llama.cpp reads by a file.

    Args:
        path: a GGUF file, or the first part of one.
        name: of the model, for errors.
        directory: of its tokenizer.
        template: its chat template, if it has one.

    Returns:
        As :func:`compare_tokens`; nothing where llama.cpp is not installed.

    Raises:
        UserError: llama.cpp would read other tokens.
    """
    from bitquilt.targets.gguf.vocabulary import llama_cpp_tokenizer

    own = OwnTokens(name=name, tokenizer=load_tokenizer(directory), template=template)
    container = read_container(path)
    header = encode_header(read_pairs(path, container), [])
    stated, pre = map(container.metadata.get, (NORMALIZER, "tokenizer.ggml.pre"))
    try:
        with llama_cpp_tokenizer(header, path.name) as theirs:
            remedy = (
                f"give the file that was made from this model, or convert {path.name} again with a "
                "newer converter"
            )
            composed = is_composed(stated, pre)
            return compare_tokens(own, theirs, "llama.cpp", remedy, composed=composed)
    except EngineMissingError:
        return []


def compare_tokens(
    own: OwnTokens, theirs: Tokenize, engine: str, remedy: str, *, composed: bool = True
) -> list[str]:
    """Compare a model's own tokens with those of an engine.

    Args:
        own: the tokenizer that text is calibrated with.
        theirs: the engine's.
        engine: its name.
        remedy: what would do instead; it ends the sentence.
        composed: whether the file says if accents are put together, so that bitquilt does it.

    Returns:
        Sentences about text that engines read otherwise, where nothing can be done about it.

    Raises:
        UserError: a text gives other tokens.
    """
    for about, text, add_special in _texts(own):
        ours, others = own.tokenize(text, add_special), list(theirs(text, add_special))
        if list(ours) != others:
            raise _difference(own, theirs, about, text, add_special, engine, remedy)
    told = [_about_accents(own, theirs, engine, composed), _about_marks(own, theirs, engine)]
    return [note for note in told if note]


def _texts(own: OwnTokens) -> Iterator[tuple[str, str, bool]]:
    """What each text is about, the text, and whether tokens around it are added."""
    for about, text in TEXTS.items():
        yield about, text, about == "spaces"
    if not _keeps_marks(own):
        yield "marks on letters", MARKED, False
    added = [one.content for one in own.tokenizer.added_tokens_decoder.values()]
    for start in range(0, len(added), _TOGETHER):
        some = added[start : start + _TOGETHER]
        yield "added tokens", "".join(f"{token}x {token} y" for token in some), False
    if own.template is not None:
        try:
            rendered = ChatTemplate.compile(own.template, own.name).render(
                _CONVERSATION, **own.tokenizer.special_tokens_map
            )
        except ChatTemplateError:
            return  # it may want other conversations; who needs it is told
        yield "a conversation by the chat template", rendered, False


def _difference(
    own: OwnTokens,
    theirs: Tokenize,
    about: str,
    text: str,
    add_special: bool,
    engine: str,
    remedy: str,
) -> UserError:
    """Say where the tokens of a text begin to differ, in as few letters as do."""
    shorter = [
        piece
        for length in (8, 24, 80)
        for start in range(0, len(text), length // 2)
        if (piece := text[start : start + length])
        and list(own.tokenize(piece, add_special)) != list(theirs(piece, add_special))
    ]
    piece = min(shorter, key=len, default=text)
    ours, others = list(own.tokenize(piece, add_special)), list(theirs(piece, add_special))
    shown = piece if len(piece) <= 80 else f"{piece[:80]}…"
    return UserError(
        f"{engine} would split text ({about}) into other tokens than {own.name}'s tokenizer.json: "
        f"{shown!r} is {others[:12]} in {engine} and {ours[:12]} by tokenizer.json; {remedy}"
    )


def _about_accents(own: OwnTokens, theirs: Tokenize, engine: str, composed: bool) -> str | None:
    """Whether the engine lacks a normalizer that puts letters and accents together."""
    ours, others = own.tokenize(UNCOMPOSED, False), theirs(UNCOMPOSED, False)
    joined = own.tokenize(unicodedata.normalize("NFC", UNCOMPOSED), False)
    if list(ours) == list(others) or list(ours) != list(joined):
        return None
    who = (
        f"another program than bitquilt gives it to {engine}" if composed else f"{engine} reads it"
    )
    return (
        f"{engine} does not join letters with accents that follow them as characters of their own, "
        f"as {own.name}'s tokenizer does: convert such text to Unicode NFC before {who}"
    )


def _keeps_marks(own: OwnTokens) -> bool:
    """Whether a tokenizer names Unicode's marks in how it splits text, as Tekken does."""
    backend = getattr(own.tokenizer, "backend_tokenizer", None)
    return r"\p{M}" in str(getattr(backend, "pre_tokenizer", ""))


def _about_marks(own: OwnTokens, theirs: Tokenize, engine: str) -> str | None:
    """Whether the engine splits words at marks that the tokenizer keeps with their letters."""
    if list(own.tokenize(MARKED, False)) == list(theirs(MARKED, False)):
        return None
    return (
        f"{engine} splits words at vowel marks, and {own.name}'s tokenizer does not: text in "
        f"Hindi, Thai, vowelled Arabic and similar scripts gets other and more tokens in {engine}, "
        "and no file can change that"
    )
