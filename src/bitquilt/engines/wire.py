"""Messages between our process and an engine's: a line of JSON, then an array if it has a shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bitquilt.engines.engine import GeneratedToken, TokenScore

Packet = dict[str, Any]
"""The JSON of one message; ``shape`` announces float32 values behind it."""


def send(stream: BinaryIO, message: Packet, array: npt.NDArray[np.float32] | None = None) -> None:
    """Write one message, with a float32 array behind it."""
    if array is not None:
        message = {**message, "shape": list(array.shape)}
    stream.write(json.dumps(message).encode() + b"\n")
    if array is not None:
        stream.write(np.ascontiguousarray(array, dtype=np.float32).data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Packet, npt.NDArray[np.float32] | None]:
    """Read one message and its array.

    Raises:
        EOFError: the other side is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: Packet = json.loads(line)
    if "shape" not in message:
        return message, None
    array = np.empty(message["shape"], dtype=np.float32)
    view = array.data.cast("B")
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return message, array


def packed_token(piece: GeneratedToken) -> tuple[Any, ...]:
    """A token for a message; most are but a number and a text, some of them drafted."""
    if not (piece.control or piece.ends or piece.problem or piece.score or piece.prompt):
        return (piece.token, piece.text, True) if piece.drafted else (piece.token, piece.text)
    return astuple(piece)


def unpacked_token(fields: Sequence[Any]) -> GeneratedToken:
    """The token of a message."""
    if len(fields) <= 3:
        return GeneratedToken(fields[0], fields[1], drafted=len(fields) == 3)
    *plain, score, prompt, drafted = fields
    token, text, control, ends, broken, problem = plain
    return GeneratedToken(
        token,
        text,
        control,
        ends,
        broken,
        problem,
        score=TokenScore(*score) if score else None,
        prompt=[TokenScore(*one) for one in prompt],
        drafted=drafted,
    )
