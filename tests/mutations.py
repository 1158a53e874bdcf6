"""Damage to files, each kind by the number of a case: the same number damages the same way.

Bytes are damaged anywhere; JSON and GGUF headers also where they stay what they are, with a value
that nobody expects there.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from bitquilt.gguf.container import ALIGNMENT, Container, aligned, read_container, read_pairs

ODD_NUMBERS = (-1, 0, 1, 2, 3, 7, 1000, 2**31, 2**32 - 1, 2**40, 2**63, -(2**40))
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS,
    *(0.5, -3.25, 1e308, float("nan"), float("inf"), None, True, False),
    *("", " ", "text", "\ud800", "é" * 300, "{{ 1", "\0"),
    *([], {}, [None], [[]], [1, 2], ["a", "b"], [-1], [2**40], [0.5, "a"]),
    *({"a": 1}, {"content": 3}, {"type": "Sequence"}, {"type": 1}, {"full_attention": None}),
)
"""JSON values, each unlike what stands in a file."""


def damaged(path: Path, case: int) -> str:
    """Damage a file in place; return what was done, for who wants to know.

    Args:
        path: decides by its name how it can be damaged.
        case: another one damages otherwise.
    """
    random = Random(f"{path.name} {case}")
    raw = path.read_bytes()
    ways: list[Any] = [_bytes]
    if path.suffix == ".json":
        ways += [_json] * 6
    elif path.suffix == ".jsonl":
        ways += [_json_line] * 4
    elif path.suffix == ".gguf":
        ways += [_gguf_pair] * 4 + [_gguf_tensor] * 2
    elif path.suffix == ".safetensors":
        ways += [_safetensors] * 4
    elif path.suffix == ".jinja":
        ways += [_text] * 3
    changed, what = raw, "nothing"
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        path.write_bytes(changed)
        changed, what = random.choice(ways)(path, changed, random)
    path.write_bytes(changed)
    return what


def _bytes(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    """Damage bytes, mostly those near the beginning, where headers are."""
    most = len(raw) if random.random() < 0.3 else min(len(raw), 2048)
    at = random.randrange(most + 1)
    end = min(len(raw), at + random.choice((1, 1, 2, 4, 8, 100)))
    numbers = (0, 1, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
    other = random.choice(
        (
            bytes(random.randrange(256) for _ in range(end - at)),
            b"\xff" * (end - at),
            b"",
            raw[at:end] * 3,
            struct.pack("<Q", random.choice(numbers)),
        )
    )
    if random.random() < 0.15:
        return raw[:at], f"ends at {at}"
    return raw[:at] + other + raw[end:], f"bytes {at} to {end} become {other[:20]!r}"


def _text(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    at = random.randrange(len(raw) + 1)
    parts = ("{{", "}}", "{%", "%}", "{% for x in y %}", "messages", "[0]", ".a.b", "|join", "'")
    part = random.choice(parts)
    skipped = random.choice((0, 1, 10))
    return raw[:at] + part.encode() + raw[at + skipped :], f"{part} at {at}"


def _json(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return _bytes(path, raw, random)
    if random.random() < 0.03:
        return b"[" * 100_000 + b"]" * 100_000, "nests deeply"
    content, what = _other(content, random)
    return json.dumps(content).encode(), what


def _json_line(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    lines = raw.split(b"\n")
    at = random.randrange(len(lines))
    lines[at], what = _json(path, lines[at], random)
    return b"\n".join(lines), f"line {at}: {what}"


def _other(content: Any, random: Random) -> tuple[Any, str]:
    """Change one value somewhere in a JSON value: near its top as often as deep in it."""
    if not isinstance(content, dict | list) or not content or random.random() < 0.02:
        value = random.choice(ODD_VALUES)
        return value, f"is {value!r:.60}"
    where = random.choice(list(content) if isinstance(content, dict) else range(len(content)))
    within = content[where]
    chance = random.random()
    if isinstance(within, dict | list) and within and chance < 0.75:
        content[where], what = _other(within, random)
        return content, f"{where!r:.40}: {what}"
    if chance < 0.8:
        del content[where]
        return content, f"{where!r:.40} is gone"
    if chance < 0.87:
        if isinstance(content, dict):
            content[random.choice(("", "x", str(where) + "s"))] = content.pop(where)
        else:
            content.append(within)
        return content, f"{where!r:.40} moves"
    content[where] = random.choice(ODD_VALUES)
    return content, f"{where!r:.40} is {content[where]!r:.60}"


def _safetensors(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    try:
        length = int.from_bytes(raw[:8], "little")
        header, what = _json(path, raw[8 : 8 + length], random)
    except OverflowError:
        return _bytes(path, raw, random)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :], what


def _gguf_pair(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    """Change, rename or remove one pair of metadata."""
    found = _container(path)
    if found is None or not found.metadata:
        return _bytes(path, raw, random)
    pairs = read_pairs(path, found)
    key = random.choice(list(pairs))
    chance = random.random()
    if chance < 0.1:
        del pairs[key]
        return _joined(raw, found, pairs), f"{key} is gone"
    if chance < 0.15:
        pairs[key + "x"] = pairs.pop(key)
        return _joined(raw, found, pairs), f"{key} is renamed"
    old = found.metadata[key]
    if isinstance(old, list) and old and chance < 0.7:
        new = list(old)
        at = random.randrange(len(new))
        other = random.choice((new[random.randrange(len(new))], "", "no such", "a b c", "\0"))
        cuts = [new[:at], new[:at] + new[at + 1 :], [*new[:at], other, *new[at + 1 :]], new + new]
        new = random.choice(cuts)
        pairs[key] = _typed(new) if len({type(one) for one in new}) < 2 else _typed([])
        return _joined(raw, found, pairs), f"{key} has {len(new)} entries, changed near {at}"
    value = random.choice(
        (
            *ODD_NUMBERS,
            0.5,
            1e308,
            float("nan"),
            True,
            "",
            "text",
            "\ud800",
            [],
            [1, 2],
            ["a"],
            [[]],
        )
    )
    pairs[key] = _typed(value)
    return _joined(raw, found, pairs), f"{key} is {value!r}"


def _gguf_tensor(path: Path, raw: bytes, random: Random) -> tuple[bytes, str]:
    """Change one row of the tensor table."""
    found = _container(path)
    if found is None or not found.tensors:
        return _bytes(path, raw, random)
    table = _table(found, raw)
    at = random.randrange(len(table))
    name, sizes, kind, offset = table[at]
    odd = random.choice((0, 1, 3, 2**20, 2**32, 2**40, 2**63, 2**64 - 1))
    other: list[tuple[str, list[int], int, int]] = [
        (name, [odd, *sizes[1:]], kind, offset),
        (name, [*sizes[:-1], odd], kind, offset),
        (name, [], kind, offset),
        (name, [*sizes, *sizes], kind, offset),
        (name, sizes[::-1], kind, offset),
        (name, sizes, random.choice((1, 2, 8, 12, 24, 28, 30, 39, 4, 99)), offset),
        (name, sizes, kind, odd),
        (name + "x", sizes, kind, offset),
        (table[0][0], sizes, kind, offset),
        ("", sizes, kind, offset),
    ]
    table[at] = random.choice(other)
    if random.random() < 0.1:
        del table[at]
        return _joined(raw, found, read_pairs(path, found), table), f"{name} is gone"
    what = f"{name} becomes {table[at]}"
    return _joined(raw, found, read_pairs(path, found), table), what


def _container(path: Path) -> Container | None:
    try:
        return read_container(path)
    except (ValueError, OSError, OverflowError):
        return None


def _table(found: Container, raw: bytes) -> list[tuple[str, list[int], int, int]]:
    start = min((tensor.offset for tensor in found.tensors.values()), default=0)
    return [
        (name, list(reversed(tensor.shape)), int(tensor.type), tensor.offset - start)
        for name, tensor in found.tensors.items()
    ]


def _joined(
    raw: bytes,
    found: Container,
    pairs: dict[str, bytes],
    table: list[tuple[str, list[int], int, int]] | None = None,
) -> bytes:
    """The file with another header before the same data."""
    table = _table(found, raw) if table is None else table
    start = min((tensor.offset for tensor in found.tensors.values()), default=len(raw))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(pairs))
    header += b"".join(_string(key) + value for key, value in pairs.items())
    for name, sizes, kind, offset in table:
        header += _string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += struct.pack("<IQ", kind, offset % 2**64)
    return header + bytes(aligned(len(header), ALIGNMENT) - len(header)) + raw[start:]


def _typed(value: Any) -> bytes:
    """A value in the narrowest type that holds it, which need not be the one that belongs there."""
    if isinstance(value, list):
        kind, parts = 8, [_typed(one) for one in value]
        kind = struct.unpack("<I", parts[0][:4])[0] if parts else 5
        same = [part for part in parts if part[:4] == struct.pack("<I", kind)]
        return struct.pack("<IIQ", 9, kind, len(same)) + b"".join(part[4:] for part in same)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value) if abs(value) < 1e38 else struct.pack("<Id", 12, value)
    if -(2**31) <= value < 2**31:
        return struct.pack("<Ii", 5, value)
    return struct.pack("<Iq", 11, value) if value < 2**63 else struct.pack("<IQ", 10, value % 2**64)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw
