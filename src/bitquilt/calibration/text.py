"""Windows of tokens for one model, by its own tokenizer and chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitquilt.calibration.corpus import Document, bundled, from_file, windows, without_overlap
from bitquilt.calibration.kept_states import states_at_once
from bitquilt.calibration.shrinkage import FOLDS
from bitquilt.calibration.text_budget import TextBudget, text_budget
from bitquilt.errors import UserError
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.runtime.device import gpu_memory

Encode = Callable[[Document], list[int]]
KINDS = ("unlike", "like")
"""The kinds of held-out text: of domains that the calibration text has none of, and of its domains.
The first is the headline, since people use models on text that nobody calibrated on."""
ENOUGH = 16
"""Characters that are tokenized for each token needed: three or four times as many as it takes."""


def budget_for(checkpoint: Checkpoint, factor: float = 1.0) -> TextBudget:
    """Return the budget for a model on the device that is computed on.

    Args:
        checkpoint: the model.
        factor: how much more than usual there is time for.
    """
    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    hidden = states_at_once(checkpoint.layers) * int(checkpoint.config["hidden_size"])
    return text_budget(weights, hidden, gpu_memory(), factor)


def encoder(checkpoint: Checkpoint) -> Encode:
    """Return a function from a document to token ids.

    Text gets the tokenizer's own start token; messages go through the chat template.

    Without a chat template, messages become paragraphs.

    Raises:
        UserError: the checkpoint has no tokenizer, or one that is damaged; encoding raises it for
            a tokenizer of another model, whose ids go beyond the embedding's rows, and for
            messages that the chat template refuses.
    """
    if checkpoint.tokenizer_dir is None:
        raise UserError(
            f"{checkpoint.name} has no tokenizer; put tokenizer.json and tokenizer_config.json "
            "beside its config.json"
        )
    place, template = checkpoint.tokenizer_dir, checkpoint.chat_template
    return document_encoder(checkpoint.name, place, template, checkpoint.embeddings)


def document_encoder(name: str, directory: Path, template: str | None, rows: int) -> Encode:
    """Return what :func:`encoder` does, of a model that is no checkpoint.

    Args:
        name: of the model, for errors.
        directory: of its tokenizer.
        template: its chat template, if it has one.
        rows: how many embeddings it has.

    Raises:
        UserError: as :func:`encoder`.
    """
    tokenizer = load_tokenizer(directory)

    def encode(document: Document) -> list[int]:
        ids = tokenize(document)
        if (largest := max(ids, default=0)) >= rows:
            raise UserError(
                f"the tokenizer in {directory} gives the id {largest}, but "
                f"{name} has {rows} embeddings; the tokenizer belongs to another "
                "model: put the model's own there"
            )
        return ids

    def tokenize(document: Document) -> list[int]:
        if document.messages is None:
            return list(tokenizer.encode(document.text))
        if template is None:
            return list(tokenizer.encode("\n\n".join(document.passages)))
        try:
            rendered = ChatTemplate.compile(template, name).render(
                document.messages, add_generation_prompt=False, **tokenizer.special_tokens_map
            )
        except ChatTemplateError as error:
            raise UserError(
                f"the chat template of {name} refuses a conversation of "
                f"{document.source}: {error.reason}; change the roles of its messages, or give it "
                "as plain text"
            ) from error
        return list(tokenizer.encode(rendered, add_special_tokens=False))

    return encode


def held_out_documents(file: str | Path | None = None) -> list[Document]:
    """The documents that judge: the bundled ones, or a user's."""
    return bundled("held-out") if file is None else from_file(Path(file))


def calibration_documents(
    file: str | Path | None, held_out: str | Path | None = None
) -> tuple[list[Document], list[str]]:
    """The bundled documents or a user's, less those that repeat held-out text, and their names."""
    if file is None and held_out is None:
        return bundled("calibration"), []  # made of other documents than the bundled held-out text
    documents = bundled("calibration") if file is None else from_file(Path(file))
    return without_overlap(documents, held_out_documents(held_out))


def search_documents(held_out: str | Path | None = None) -> list[Document]:
    """The bundled documents that types are chosen on, less those that repeat a user's held-out
    text. No calibration text is of their domains.
    """
    documents = bundled("search")
    if held_out is None:
        return documents
    return without_overlap(documents, held_out_documents(held_out))[0]


def token_windows(documents: Sequence[Document], encode: Encode, count: int, length: int) -> Tensor:
    """Cut int64 [count, length] windows from documents, spread over all of them.

    Only as many documents are tokenized as give several times the text that is needed.
    """
    chosen = _spread(documents, count * length * ENOUGH)
    return torch.from_numpy(windows(chosen, encode, count, length)[0])


def calibration_windows(
    documents: Sequence[Document], encode: Encode, count: int, length: int
) -> tuple[Tensor, Tensor]:
    """Cut windows as :func:`token_windows` does, and deal them into folds of other text each.

    Folds differ in their domains where there are enough, else in their documents.

    Returns:
        tokens int64 [count, length], and the fold of each window int64 [count].
    """
    chosen = _spread(documents, count * length * ENOUGH)
    tokens, owners = windows(chosen, encode, count, length)
    domains = [chosen[first].domain for first in owners[:, 0]]
    groups = domains if len(set(domains)) >= FOLDS else owners[:, 0].tolist()
    # in the order of their text, the most first: each fold gets about as much
    ranks = {group: rank for rank, (group, _) in enumerate(Counter(groups).most_common())}
    folds = torch.tensor([ranks[group] % FOLDS for group in groups], dtype=torch.int64)
    return torch.from_numpy(tokens), folds


def judging_windows(
    documents: Sequence[Document], encode: Encode, count: int, length: int
) -> tuple[Tensor, Tensor]:
    """Cut windows of as many documents as there are, and tell the document of each token.

    Tokens of one document hang together: the more documents, the more the text says.

    Returns:
        tokens and numbers of documents, both int64 [count, length].
    """
    chosen = _spread(documents, 4 * count * length * ENOUGH)  # there are few long documents
    tokens, owners = windows(chosen, encode, count, length, apart=True)
    return torch.from_numpy(tokens), torch.from_numpy(owners)


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Windows of held-out text of two kinds, both int64 [N, L]; those of unlike text are first."""

    tokens: Tensor
    owners: Tensor
    """The number of the document that each token is from, counted within its kind."""
    unlike: int
    """How many of the windows are of domains that the calibration text has none of; the others are
    of its domains."""


def held_out_windows(
    documents: Sequence[Document],
    calibration: Sequence[Document],
    encode: Encode,
    count: int,
    length: int,
) -> tuple[HeldOutText, str]:
    """Cut windows of held-out text, of each kind as many.

    Args:
        documents: the held-out text.
        calibration: what the model is calibrated on; its domains tell the kinds apart.
        encode: the tokenizer.
        count: windows of each kind; a kind with less text than that is left out.
        length: of a window.

    Returns:
        the windows, and why there are none of a kind; empty where there are of both.

    Raises:
        UserError: neither kind has enough text.
    """
    unlike, like = KINDS
    calibrated = {document.domain for document in calibration}
    kinds: dict[str, list[Document]] = {unlike: [], like: []}
    for document in documents:
        kinds[like if document.domain in calibrated else unlike].append(document)
    drawn: dict[str, tuple[Tensor, Tensor]] = {}
    missing: list[UserError] = []
    for kind, own in kinds.items():
        try:
            drawn[kind] = judging_windows(own, encode, count, length)
        except UserError as error:
            missing.append(error)
    if not drawn:
        raise missing[not kinds[unlike]]
    tokens, owners = (torch.cat(of_kinds) for of_kinds in zip(*drawn.values(), strict=True))
    text = HeldOutText(tokens=tokens, owners=owners, unlike=count if unlike in drawn else 0)
    return text, "".join(_lacking(kind, bool(kinds[kind])) for kind in kinds if kind not in drawn)


def _lacking(kind: str, some: bool) -> str:
    """Say why files are not measured on one kind of text."""
    lack = "is too little" if some else "is none"
    return f"files are not measured on text {kind} the calibration text: there {lack} of it"


def races_and_selection(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Every domain's documents in two lists: two thirds for races, one for the selection."""
    domains: dict[str, list[Document]] = {}
    for document in documents:
        domains.setdefault(document.domain, []).append(document)
    races = [d for own in domains.values() for n, d in enumerate(own) if n % 3 != 2]
    return races, [d for own in domains.values() for d in own[2::3]]


def tuning_windows(
    documents: Sequence[Document],
    search: Sequence[Document],
    encode: Encode,
    apart: int,
    count: int,
    length: int,
) -> Tensor:
    """Cut int64 [count, length] windows to tune on; the first of them say when to stop.

    Args:
        documents: the calibration text.
        search: documents of other domains, which the windows set apart are from; with too few of
            them, all windows are of calibration text.
        encode: splits text into tokens.
        apart: windows that are set apart.
        count: windows in all.
        length: tokens of a window.

    Raises:
        UserError: there is too little calibration text.
    """
    try:
        others = mixed_windows((), races_and_selection(search)[0], encode, apart, length)
    except UserError:
        return token_windows(documents, encode, count, length)
    own = token_windows(documents, encode, count - apart, length)
    return torch.cat([others, own])


def mixed_windows(
    users: Sequence[Document],
    bundled: Sequence[Document],
    encode: Encode,
    count: int,
    length: int,
) -> Tensor:
    """Cut int64 [count, length] windows of many documents, in an order that is mixed.

    Half of them are from a user's documents, if these have as much.

    Raises:
        UserError: the bundled documents have too little.
    """
    parts = []
    if users:
        with suppress(UserError):
            parts.append(judging_windows(users, encode, count // 2, length)[0])
    missing = count - sum(map(len, parts))
    parts.append(judging_windows(bundled, encode, missing, length)[0])
    order = np.random.default_rng(0).permutation(count)
    return torch.cat(parts)[torch.from_numpy(order)]


def _spread(documents: Sequence[Document], characters: int) -> list[Document]:
    """Documents with at least that many characters, or all: the same share of every domain.

    Within a domain every n-th document is taken; where those are short ones, the skipped follow.
    """
    stride = max(1, sum(map(_characters, documents)) // characters)
    domains: dict[str, list[Document]] = {}
    for document in documents:
        domains.setdefault(document.domain, []).append(document)
    chosen = []
    for own in domains.values():
        missing = sum(map(_characters, own)) / stride
        for document in chain.from_iterable(own[start::stride] for start in range(stride)):
            if missing <= 0:
                break
            chosen.append(document)
            missing -= _characters(document)
    return chosen


def _characters(document: Document) -> int:
    return sum(map(len, document.passages))
