"""A small real reasoning model of MobileLLM-R1's architecture, and problems it never saw.

They come with the package, so that everything can be tried without a download. Nothing goes in; out
come the directory that the reference ``demo`` stands for, and the problems with their answers.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent


def path() -> Path:
    """The Hugging Face directory of the demo model."""
    return HERE / "model"


def problems() -> list[dict[str, str]]:
    """Held-out problems: `question`, `answer` (what belongs in the box) and `kind`."""
    return [json.loads(line) for line in (HERE / "problems.jsonl").read_text().splitlines()]
