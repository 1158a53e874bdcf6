"""A small real reasoning model of MobileLLM-R1's architecture, and problems it never saw."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def path() -> Path:
    """The Hugging Face directory of the demo model."""
    return HERE / "model"


def problems() -> list[dict[str, str]]:
    """Held-out problems: `question`, `answer` (what belongs in the box) and `kind`."""
    return [json.loads(line) for line in (HERE / "problems.jsonl").read_text().splitlines()]
