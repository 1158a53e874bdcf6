"""Dataclasses go to JSON and come back; what cannot be read names its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitquilt.errors import UserError
from bitquilt.runtime.records import from_json, load_record, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    value: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    path: Path
    whole: int
    flag: bool
    inner: Inner
    several: Sequence[Inner]
    named: Mapping[str, int]


RECORD = Outer(
    path=Path("a/b"),
    whole=3,
    flag=True,
    inner=Inner(value=0.5),
    several=(Inner(value=1.0, note="one"), Inner(value=2.0)),
    named={"x": 1},
)


def test_what_is_written_is_read_back():
    content = json.loads(json.dumps(to_json(RECORD)))
    assert from_json(Outer, content) == RECORD
    assert from_json(Outer, content | {"later": "a field that we do not know"}) == RECORD


def test_nan_is_null_in_json():
    assert to_json(Inner(value=math.nan)) == {"value": None, "note": None}
    assert math.isnan(from_json(Inner, {"value": None}).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": "3"}, "whole is not of type int"),
        ({"whole": True}, "whole is not of type int"),
        ({"flag": 1}, "flag is not of type bool"),
        ({"inner": []}, "inner is not an object"),
        ({"inner": {}}, r"inner\.value is missing"),
        ({"several": [{"value": 1}, {"value": "2"}]}, r"several\[1\]\.value is not a number"),
        ({"several": {}}, "several is not a list"),
        ({"named": {"x": 1.5}}, r"named\.x is not of type int"),
        ({"path": 1}, "path is not a path"),
    ],
)
def test_another_type_names_its_field(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(Outer, to_json(RECORD) | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1]", "does not hold a JSON object"),
        ("{}", "was written by another version of bitquilt"),
        ('{"format": 1, "value": 1}', "was written by another version of bitquilt"),
        ('{"format": 2, "value": []}', "cannot be used: value is not a number"),
    ],
)
def test_a_file_that_is_not_one_of_ours_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"record\.json {message}.*; make it again"):
        load_record(Inner, path, 2, "make it again")
