"""The text that a model is calibrated on and compared on: bundled, or the user's own.

Three splits ship with the package, made of different documents. Calibration text steers the
rounding, and search text, of other domains, the choice of types. Held-out text only ever measures
them, so a user's calibration documents that repeat it are taken out before they are used.
"""

import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitquilt.errors import UserError
from bitquilt.runtime.near import suggestion

DATA = Path(__file__).parent / "data"
LONG_LINE = 80
"""Passages of fewer characters recur by chance."""
DOCUMENT_BREAK = "\n\n\n"
"""Two blank lines."""


@dataclass(frozen=True)
class Document:
    """Running text, or a conversation for the chat template of the model at hand."""

    domain: str
    source: str
    text: str | None
    messages: tuple[dict[str, str], ...] | None

    @property
    def passages(self) -> tuple[str, ...]:
        """The document's words, whichever form it has."""
        if self.messages is not None:
            return tuple(message["content"] for message in self.messages)
        return (self.text or "",)


# ---------------------------------------------------------------------------------- reading


def bundled(split: Literal["calibration", "search", "held-out"]) -> list[Document]:
    """Read the documents that ship with the package; `calibration-text/` builds them."""
    path = DATA / f"{split.replace('-', '_')}.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [_document(json.loads(line), source=path.name) for line in lines]


def from_file(path: Path) -> list[Document]:
    """Read a user's documents from `.txt` or `.jsonl`, either of them also as `.gz` or `.xz`.

    A `.txt` file is split into documents at two blank lines.
    A `.jsonl` line is an object with `text`, or with `messages` of `role` and `content`, and
    optionally `domain` and `source`.

    Raises:
        UserError: the file cannot be read, is not in this form, or holds no text.
    """
    kind = path.with_suffix("").suffix if path.suffix in {".gz", ".xz"} else path.suffix
    if path.is_file() and kind not in {".txt", ".jsonl"}:
        raise UserError(
            f"{path} is neither .txt nor .jsonl (optionally .gz or .xz); rename or convert the text"
        )
    content = read_text(path)
    if kind == ".txt":
        pieces = [piece.strip("\n") for piece in content.split(DOCUMENT_BREAK)]
        documents = [
            Document("text", f"{path.name}#{number}", piece, None)
            for number, piece in enumerate(pieces, 1)
            if piece.strip()
        ]
    else:
        # split on "\n" alone: text inside a JSON string may hold other Unicode line breaks
        documents = [
            _user_document(line, path, number)
            for number, line in enumerate(content.split("\n"), 1)
            if line.strip()
        ]
    if not documents:
        raise UserError(f"{path} holds no text; give a file with documents in it")
    return documents


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, decompressed where its name ends in `.gz` or `.xz`.

    A byte order mark, which some editors write, is no part of the text.

    Raises:
        UserError: the file cannot be read or decompressed, or is not UTF-8.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            data: bytes = file.read()
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} cannot be decompressed ({error}); compress it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist{suggestion(path)}") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check the path of the text"
        ) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8 text") from error


def _user_document(line: str, path: Path, number: int) -> Document:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, line {number}: half of a character ({error.object[error.start]!r}); save "
            "the text as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}, letter {error.colno}: not JSON ({error.msg}); write one JSON "
            "object per line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number}: not JSON ({error}); write one JSON object per line"
        ) from error
    text, messages = (
        (record.get("text"), record.get("messages")) if isinstance(record, dict) else (None, None)
    )
    if isinstance(text, str) == _are_messages(messages):
        raise UserError(
            f"{path}, line {number}: give either `text` (a string) or `messages` (a list of "
            "objects with `role` and `content`)"
        )
    return _document(record, source=f"{path.name}#{number}")


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
    )


def _document(record: dict[str, Any], source: str) -> Document:
    messages = record.get("messages")
    return Document(
        domain=str(record.get("domain", "text" if messages is None else "chat")),
        source=str(record.get("source", source)),
        text=record.get("text"),
        messages=None
        if messages is None
        else tuple({"role": m["role"], "content": m["content"]} for m in messages),
    )


# ---------------------------------------------------------------------------------- overlap


def without_overlap(
    documents: Sequence[Document], held_out: Iterable[Document]
) -> tuple[list[Document], list[str]]:
    """Drop documents that repeat a long line or paragraph of held-out text; name the dropped."""
    reserved = {passage for document in held_out for passage in long_passages(document)}
    kept: list[Document] = []
    dropped: list[str] = []
    for document in documents:
        if reserved.isdisjoint(long_passages(document)):
            kept.append(document)
        else:
            dropped.append(document.source)
    return kept, dropped


def long_passages(document: Document) -> set[str]:
    """Return the lines and paragraphs of 80 characters and more, in lower case, evenly spaced.

    Paragraphs too, since code and hard-wrapped text may have no long line at all.
    """
    pieces = {
        piece
        for passage in document.passages
        for paragraph in passage.split("\n\n")
        for piece in (paragraph, *paragraph.split("\n"))
        if len(piece) >= LONG_LINE
    }
    normalised = {" ".join(piece.lower().split()) for piece in pieces}
    return {piece for piece in normalised if len(piece) >= LONG_LINE}


# ---------------------------------------------------------------------------------- windows


Integers = np.ndarray[tuple[int, int], np.dtype[np.int64]]


def windows(
    documents: Iterable[Document],
    encode: Callable[[Document], list[int]],
    count: int,
    length: int,
    seed: int = 0,
    *,
    apart: bool = False,
) -> tuple[Integers, Integers]:
    """Draw `count` disjoint windows of `length` tokens, domains in the proportions of the text.

    Documents are joined within a domain, so no window crosses two domains, but several may be of
    one document, unless there are enough others and ``apart`` asks for them. The order is mixed:
    the first half of the windows is as representative as all of them.

    Returns:
        the tokens, and the number of the document that each is from; both int64 [count, length].

    Raises:
        UserError: the documents have too few tokens.
    """
    streams: dict[str, tuple[list[int], list[int]]] = {}
    for number, document in enumerate(documents):
        ids = encode(document)
        tokens, owners = streams.setdefault(document.domain, ([], []))
        tokens += ids
        owners += [number] * len(ids)
    lengths = {domain: len(tokens) for domain, (tokens, _) in sorted(streams.items())}
    available = {domain: tokens // length for domain, tokens in lengths.items()}
    total = sum(available.values())
    if total < count:
        raise UserError(
            f"the text has {sum(lengths.values())} tokens, enough for {total} windows of {length} "
            f"tokens, but {count} windows are needed; give more text"
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for domain, share in _shares(available, count).items():
        order = rng.choice(available[domain], available[domain] if apart else share, replace=False)
        if apart:
            order = _first_of_each(order, streams[domain][1][::length])[:share]
        for start in order:
            part = slice(start * length, (start + 1) * length)
            chosen.append([of_domain[part] for of_domain in streams[domain]])
    drawn = np.array(chosen, dtype=np.int64).reshape(count, 2, length)
    tokens, owners = rng.permutation(drawn).transpose(1, 0, 2)
    return tokens, owners


def _first_of_each(windows: Integers, documents: Sequence[int]) -> Integers:
    """Windows in an order where the first of each document come before all others of any.

    Args:
        windows: numbers of windows, in any order.
        documents: the document that each window begins in.
    """
    begun = np.array(documents)[windows]
    firsts = np.sort(np.unique(begun, return_index=True)[1])
    return np.concatenate([windows[firsts], np.delete(windows, firsts)])


def _shares(available: dict[str, int], count: int) -> dict[str, int]:
    """Largest remainders: whole numbers in the given proportions that add up to `count`."""
    total = max(sum(available.values()), 1)
    shares = {domain: count * n // total for domain, n in available.items()}
    by_remainder = sorted(available, key=lambda domain: -(count * available[domain] % total))
    for domain in by_remainder[: count - sum(shares.values())]:
        shares[domain] += 1
    return shares


def fingerprint(documents: Iterable[Document]) -> str:
    """Return the SHA-256 over the documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        record = [document.domain, document.source, document.text, document.messages]
        digest.update(json.dumps(record, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
