"""Collects schemas.json from a source archive of the package jsonschema, which has the test suite.

    python tests/talk/data/collect_schemas.py jsonschema-4.26.0

The suite is JSON-Schema-Test-Suite, drafts 2020-12 and 7, MIT, Copyright (c) 2012 Julian Berman.
Left out are schemas that refer to a server of the suite, that are true or false, and those on
ECMAScript's regular expressions, which Python's jsonschema takes for Python's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SKIPPED = ("optional/ecmascript-regex", "optional/non-bmp-regex")

found: dict[str, dict[str, object]] = {}
for draft in ("draft2020-12", "draft7"):
    folder = Path(sys.argv[1]) / "json" / "tests" / draft
    for path in sorted(folder.rglob("*.json")):
        place = str(path.relative_to(folder).with_suffix(""))
        for case in json.loads(path.read_text("utf-8")):
            schema = case["schema"]
            if not isinstance(schema, dict) or place in SKIPPED:
                continue
            schema.pop("$schema", None)
            text = json.dumps(schema)
            if "localhost" not in text:
                name = f"{place}: {case['description']}"
                found.setdefault(text, {"draft": draft, "name": name, "schema": schema})
lines = ",\n".join(json.dumps(one) for one in found.values())
Path(__file__).with_name("schemas.json").write_text(f"[\n{lines}\n]\n", "utf-8")
