"""``bitquilt trim``: a model with only the tokens that somebody's text needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitquilt.calibration.corpus import Document, bundled, fingerprint
from bitquilt.calibration.text import Encode, document_encoder, encoder, token_windows
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import EMBEDDING, Checkpoint
from bitquilt.models.sources.hugging_face import TRIMMED
from bitquilt.runtime.device import computing
from bitquilt.runtime.files import atomic_write, require_room
from bitquilt.runtime.progress import Progress, Silent
from bitquilt.targets.destination import check_directory
from bitquilt.trimming.bpe import BpeFile, ids_in
from bitquilt.trimming.checkpoint import CutCheckpoint
from bitquilt.trimming.config import TrimConfig
from bitquilt.trimming.expected import expected_shares
from bitquilt.trimming.ranking import (
    KeptText,
    count_tokens,
    counted_shares,
    language_of,
    letters_of,
    ranked_tokens,
    text_to_keep,
)
from bitquilt.trimming.unigram import tokenizer_to_cut
from bitquilt.trimming.vocabulary import closed_vocabulary

WINDOWS, WINDOW_TOKENS = 128, 128
"""Windows of the text, and tokens of each, that the model reads to tell what else it expects."""
CHOICE_VERSION = 2
"""Changes with the choice of tokens: what another version has chosen is not used again."""
READ = 1_000_000
"""Characters of a text that are split by both tokenizers, to tell how many tokens they take."""


@dataclass(frozen=True, kw_only=True)
class TokensPerByte:
    """How many tokens one text takes before and after."""

    text: str
    """What the text is."""
    before: float
    """Tokens for each byte of UTF-8, by the original's tokenizer."""
    after: float
    """The same by the smaller vocabulary."""
    nbytes: int
    """The bytes that were read."""


@dataclass(frozen=True, kw_only=True)
class TrimResult:
    """What was written, and what it costs."""

    path: Path
    """The directory of the smaller model."""
    tokens_before: int
    """The rows of the original's embedding."""
    tokens: int
    """The tokens that are kept."""
    needed: int
    """The different tokens that the text to keep has."""
    covered: float
    """The share of the text's tokens, counted as often as they come, that are kept."""
    weights_before: int
    """The weights of the original."""
    weights: int
    """The weights that are left."""
    tokens_per_byte: Sequence[TokensPerByte]
    """Of the text to keep, and of bundled held-out text in its languages."""


def trim_vocabulary(
    model: str | Path,
    config: TrimConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> TrimResult:
    """Write a model with only the tokens that some text needs, as a Hugging Face checkpoint.

    Every byte, control token and added token is kept, but for those that are reserved and that
    neither the text nor the model uses. Every kept token can still be made by the merges that are
    kept. Text whose tokens are all kept is split as before, and other text into more tokens; the
    logits of kept tokens are those of the original.

    Args:
        model: hub id, Hugging Face directory, GGUF file, or ``demo``.
        config: what is wanted.
        progress: told what goes on; stderr if not given.
        options: fields of :class:`bitquilt.TrimConfig`, instead of a config.

    Raises:
        UserError: bad input, a tokenizer that cannot be cut, or a place with other files in it.
    """
    config = TrimConfig.of(config, options)
    progress = progress or Progress()
    path = Path(config.output)
    check_directory(path, TRIMMED)
    text = text_to_keep(config)
    checkpoint = open_checkpoint(str(model))
    whole = tokenizer_to_cut(checkpoint.tokenizer_dir, checkpoint.name)
    nbytes = sum(checkpoint.source_bytes.values())
    require_room(path.resolve().parent, nbytes)
    if config.size is not None:  # known to be too few before all text is counted
        require_size(_without_reserved(whole, checkpoint, ()), config.size, checkpoint.name)
    encode = encoder(checkpoint)
    counts = _counts(text, encode, progress)
    tokenizer = _without_reserved(whole, checkpoint, counts.all.keys())
    expected = None
    if config.size is not None:
        require_size(tokenizer, config.size, checkpoint.name)
        with computing(config.device, config.threads):
            expected = _expected(checkpoint, text.own, encode, progress)
    cut = _cut(checkpoint, tokenizer, text, counts, expected, config.size)
    with progress.stage(f"Writing {path.name}", nbytes, "writing"), atomic_write(path) as part:
        cut.write(part, progress.advance)
    after = document_encoder(path.name, path, checkpoint.chat_template, len(cut.kept))
    readings = [*_readings(text.documents, config, encode, after)]
    return _result(path, cut, counts.all, readings)


def likely_cut(checkpoint: Checkpoint, config: TrimConfig) -> CutCheckpoint:
    """Choose tokens in seconds: as many as :func:`trim_vocabulary` keeps, and much the same ones.

    Where a number of them is asked for, neither is the text counted nor the model asked what it
    expects: the order of the merges decides.

    Raises:
        UserError: as :func:`trim_vocabulary`.
    """
    text = text_to_keep(config)
    whole = tokenizer_to_cut(checkpoint.tokenizer_dir, checkpoint.name)
    if config.size is None:
        counts, expected = _counts(text, encoder(checkpoint), Silent()), None
        tokenizer = _without_reserved(whole, checkpoint, counts.all.keys())
    else:
        counts = TokenCounts(Counter(), Counter(), Counter())
        expected = torch.ones(checkpoint.matrices[EMBEDDING][0])
        tokenizer = _without_reserved(whole, checkpoint, ())
        require_size(tokenizer, config.size, checkpoint.name)
    return _cut(checkpoint, tokenizer, text, counts, expected, config.size)


class TokenCounts(NamedTuple):
    """How often each token comes, by its id, in the parts of the text to keep."""

    given: Counter[int]
    languages: Counter[int]
    beside: Counter[int]

    @property
    def all(self) -> Counter[int]:
        """In all of it."""
        return self.given + self.languages + self.beside


def _counts(text: KeptText, encode: Encode, progress: Progress) -> TokenCounts:
    characters = sum(len("".join(document.passages)) for document in text.documents)
    with progress.stage("Counting tokens", characters, "counting"):
        parts = (text.given, text.languages, text.beside)
        return TokenCounts(*(count_tokens(part, encode, progress.advance) for part in parts))


def _cut(
    checkpoint: Checkpoint,
    tokenizer: BpeFile,
    text: KeptText,
    counts: TokenCounts,
    expected: Tensor | None,
    size: int | None,
) -> CutCheckpoint:
    """Choose the tokens that are kept by what was counted and what is expected [V]."""
    shares = counted_shares(counts.given + counts.languages, counts.beside)
    ranked = ranked_tokens(tokenizer, shares, expected, letters_of(text.own), counts.given.keys())
    return CutCheckpoint(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        kept=kept_ids(tokenizer, ranked, size, checkpoint),
        asked=choice_settings(checkpoint, text, size),
    )


def _without_reserved(whole: BpeFile, checkpoint: Checkpoint, counted: Collection[int]) -> BpeFile:
    """Give a tokenizer without reserved tokens that neither the text nor the model uses."""
    templates = [checkpoint.chat_template or "", *checkpoint.named_templates.values()]
    configs = (checkpoint.config, checkpoint.generation_config)
    ids = {*counted, *(index for config in configs for index in ids_in(config))}
    return whole.without_reserved("".join(templates), ids)


def choice_settings(checkpoint: Checkpoint, text: KeptText, size: int | None) -> dict[str, Any]:
    """Give all that the choice of tokens depends on, as JSON.

    Args:
        checkpoint: the original.
        text: the text whose tokens are kept.
        size: the most tokens that are kept; None if there is no limit.
    """
    return {
        "choice": CHOICE_VERSION,
        "checkpoint": checkpoint.fingerprint,
        "text": fingerprint(text.documents),
        "tokens": size,
    }


def require_size(tokenizer: BpeFile, size: int, name: str) -> None:
    """Refuse a number of tokens that has no room for those that are always kept.

    Raises:
        UserError: there are more of them.
    """
    if (least := len(tokenizer.required)) > size:
        raise UserError(
            f"the bytes, control tokens and added tokens of {name} are {least:,}, and all are "
            "kept; ask for at least that many"
        )


def kept_ids(
    tokenizer: BpeFile, ranked: Sequence[str], size: int | None, checkpoint: Checkpoint
) -> tuple[int, ...]:
    """Choose the tokens that are kept.

    Args:
        tokenizer: of the model.
        ranked: tokens, those that matter most first.
        size: the most tokens that are kept; None if there is no limit.
        checkpoint: the model, for errors and its number of embeddings.

    Returns:
        their ids, ascending.

    Raises:
        UserError: an id has no embedding.
    """
    rows, _ = checkpoint.matrices[EMBEDDING]
    kept = closed_vocabulary(tokenizer.required, ranked, tokenizer.ways(), size)
    ids = sorted(tokenizer.vocabulary[token] for token in kept)
    if ids[-1] >= rows:
        raise UserError(
            f"{tokenizer.path} has a token of id {ids[-1]}, but {checkpoint.name} has {rows} "
            "embeddings; the tokenizer belongs to another model: put the model's own there"
        )
    return tuple(ids)


def _expected(
    checkpoint: Checkpoint, documents: Sequence[Document], encode: Encode, progress: Progress
) -> Tensor:
    """Let the model say which tokens more text like this would have [V]."""
    own = [replace(document, domain="") for document in documents]
    total = 0
    for document in own:
        if (total := total + len(encode(document))) >= WINDOWS * WINDOW_TOKENS:
            break
    length = min(WINDOW_TOKENS, total)
    windows = token_windows(own, encode, min(WINDOWS, total // length), length)
    work = windows.numel() * checkpoint.weights_per_token
    with progress.stage("Reading which tokens are expected", work, "expecting"):
        return expected_shares(checkpoint, windows, progress.advance)


def _readings(
    documents: Sequence[Document], config: TrimConfig, before: Encode, after: Encode
) -> Iterator[TokensPerByte]:
    """Split some of each text by both tokenizers."""
    yield tokens_per_byte("the text to keep", documents, before, after)
    held_out = bundled("held-out")
    for language in config.languages or ():
        own = [document for document in held_out if language_of(document) == language]
        if own:
            yield tokens_per_byte(f"held-out text, {language}", own, before, after)


def tokens_per_byte(
    name: str, documents: Sequence[Document], before: Encode, after: Encode
) -> TokensPerByte:
    """Count the tokens of the first part of each document, so many that they are :data:`READ` long.

    Args:
        name: of the text.
        documents: of the text.
        before: the original's tokenizer.
        after: that of the smaller vocabulary.
    """
    share = READ // len(documents) + 1
    texts = ["\n\n".join(document.passages)[:share] for document in documents]
    parts = [Document("text", name, text, None) for text in texts]
    nbytes = sum(len(text.encode()) for text in texts)
    split = [
        sum(len(encode(part)) for part in parts) / max(1, nbytes) for encode in (before, after)
    ]
    return TokensPerByte(text=name, before=split[0], after=split[1], nbytes=nbytes)


def _result(
    path: Path, cut: CutCheckpoint, counts: Counter[int], readings: Sequence[TokensPerByte]
) -> TrimResult:
    checkpoint, new = cut.checkpoint, cut.new_ids
    covered = sum(count for index, count in counts.items() if index in new)
    rows, columns = checkpoint.matrices[EMBEDDING]
    tables = 1 if checkpoint.tied else 2
    return TrimResult(
        path=path,
        tokens_before=rows,
        tokens=len(cut.kept),
        needed=len(counts),
        covered=covered / max(1, counts.total()),
        weights_before=checkpoint.weights,
        weights=checkpoint.weights - tables * (rows - len(cut.kept)) * columns,
        tokens_per_byte=readings,
    )
