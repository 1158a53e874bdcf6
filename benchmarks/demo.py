"""What `make demo` does after set-up: quantize the embedded model both ways, ask each a question.

python benchmarks/demo.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lib.timed import BITQUILT, run

QUESTION = "What is 347 + 585?"


def main() -> None:
    """Print the table, the answers and the seconds."""
    with tempfile.TemporaryDirectory() as directory:
        quantize = (BITQUILT, "quantize", "demo", "--bits", "4.5", "--to", "both")
        quantize = (*quantize, "--search", "knapsack", "-o", directory)
        costs = [run(*quantize)]
        costs += [
            run(BITQUILT, "run", str(Path(directory) / name), QUESTION)
            for name in ("demo-4.5bit.gguf", "demo-4.5bit-mlx")
        ]
        for cost in costs:
            print(cost.stdout)
        print(f"make demo after set-up: {sum(cost.seconds for cost in costs):.0f} s")
        print(f"quantize: {costs[0]}")


if __name__ == "__main__":
    main()
