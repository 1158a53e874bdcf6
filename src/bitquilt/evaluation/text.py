"""The text that models are scored on: windows of tokens that know their documents and domains.

Letters: N windows, L tokens in a window, T scored tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text import Encode
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Progress

FEWEST_TOKENS = 32
"""A document's rest that is shorter is left out: its tokens have next to no context."""


@dataclass(frozen=True)
class Text:
    """Windows, each of one domain; tokens after the first are predicted, and scored where marked.

    The document, rather than the token, is what intervals draw anew.
    """

    tokens: Tensor
    """int64 [N, L]."""
    scored: NDArray[np.bool_]
    """[N, L − 1]: whether the token after this one counts."""
    document: NDArray[np.int64]
    """[N, L − 1]."""
    domain: tuple[str, ...]
    """The domain of each window."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256(repr((self.tokens.shape, self.domain)).encode())
        for part in (self.tokens.numpy(), self.scored, self.document):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @property
    def documents(self) -> NDArray[np.int64]:
        """The document of every scored token [T]."""
        return self.document[self.scored]

    @property
    def domains(self) -> NDArray[np.str_]:
        """The domain of every scored token [T]."""
        return np.repeat(np.array(self.domain), self.scored.sum(1))

    def first(self, windows: int, tokens: int) -> Text:
        """The first tokens of the first windows."""
        part = slice(windows), slice(tokens - 1)
        return Text(
            self.tokens[:windows, :tokens],
            self.scored[part],
            self.document[part],
            self.domain[:windows],
        )

    def nbytes(self, decode: Callable[[Sequence[int]], str]) -> NDArray[np.int64]:
        """Bytes of UTF-8 that the scored tokens of each window stand for [N]."""
        pairs = zip(self.tokens[:, 1:].numpy(), self.scored, strict=True)
        return np.array([len(decode(window[kept].tolist()).encode()) for window, kept in pairs])


def held_out(
    documents: Sequence[Document],
    encode: Encode,
    tokens: int,
    length: int,
    progress: Progress,
    calibrated: Collection[str] = (),
) -> Text:
    """About ``tokens`` tokens of the documents: text of domains that are calibrated on and other
    text get the same share, and so do, within each, its domains as far as there is a window for
    each, and within a domain its documents as far as they are long enough.

    Equal shares give the narrowest honest intervals: what is drawn anew is the document.

    Args:
        documents: of any domains.
        encode: the tokenizer.
        tokens: about how many to read.
        length: of a window.
        progress: told of domains that do not fill one.
        calibrated: the domains of the calibration text, as far as they are known.

    Raises:
        UserError: no domain fills a window.
    """
    domains = {document.domain for document in documents}
    like, unlike = sorted(domains & set(calibrated)), sorted(domains - set(calibrated))
    each = max(1, round(tokens / length / (bool(like) + bool(unlike))))
    windows: list[tuple[list[int], list[int], str]] = []
    short: list[str] = []
    for domain, count in [*_shared(like, each), *_shared(unlike, each)]:
        own = [(n, d) for n, d in enumerate(documents) if d.domain == domain]
        pieces = _spread_evenly([_pieces(n, encode(d), length) for n, d in own])
        filled = [(ids, labels, domain) for ids, labels in _filled(pieces, count, length)]
        short += [] if filled else [domain]
        windows += filled
    if not windows:
        each_domain = " of each domain" if len(domains) > 1 else ""
        raise UserError(
            f"the text has fewer than {length} tokens{each_domain}; give more text with --text"
        )
    for domain in short:
        progress.say(f"The text has fewer than {length} tokens of {domain}, which is left out")
    mixed = [windows[i] for i in np.random.default_rng(0).permutation(len(windows))]
    labels = np.array([window[1] for window in mixed])
    return Text(
        torch.tensor([window[0] for window in mixed]),
        labels[:, 1:] == labels[:, :-1],  # the first token of a document cannot be predicted
        labels[:, 1:],
        tuple(window[2] for window in mixed),
    )


def _shared(domains: Sequence[str], windows: int) -> list[tuple[str, int]]:
    """Windows for each domain; if there are fewer than domains, every so many domains have one."""
    ends = [windows * place // max(1, len(domains)) for place in range(len(domains) + 1)]
    shares = zip(domains, ends, ends[1:], strict=False)
    return [(domain, end - begin) for domain, begin, end in shares if end > begin]


Piece = tuple[int, list[int]]
"""A document's number, and at most a window of its tokens."""


def _pieces(number: int, tokens: list[int], length: int) -> list[Piece]:
    """A document cut into windows, the shorter rest last."""
    cut = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    return [(number, piece) for piece in cut if len(piece) >= FEWEST_TOKENS]


def _spread_evenly(documents: list[list[Piece]]) -> Iterator[Piece]:
    """The first piece of every document, then the second of every one that has two …"""
    for turn in range(max(map(len, documents), default=0)):
        yield from (pieces[turn] for pieces in documents if turn < len(pieces))


def _filled(
    pieces: Iterator[Piece], count: int, length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Windows of tokens and their documents' numbers: short pieces share one, the last is cut."""
    ids: list[int] = []
    labels: list[int] = []
    for number, piece in pieces:
        if count == 0:
            return
        if len(piece) == length:
            yield piece, [number] * length
        else:
            ids, labels = ids + piece, labels + [number] * len(piece)
            if len(ids) < length:
                continue
            yield ids[:length], labels[:length]
            ids, labels = [], []
        count -= 1
