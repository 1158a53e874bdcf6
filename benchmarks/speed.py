"""Predicted and measured tokens a second, mix by mix: how far to trust ``--min-tokens-per-second``.

    python benchmarks/speed.py [MODEL...]

Types within reach of 4.5 bits are timed (or remembered); then presets and random mixes, none of
which was timed, are written and measured by ``bitquilt bench``, one answer to a prompt of 128.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from bitquilt.allocation import presets, speed_profile
from bitquilt.allocation.plan import make_plan, requests
from bitquilt.allocation.timing import random_weights
from bitquilt.config import AllocationConfig, SearchConfig
from bitquilt.evaluation.speed import bench
from bitquilt.models import open_checkpoint
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.progress import Progress
from bitquilt.targets import GGUF

BITS = 4.5
PRESETS = ("Q4_K_M", "IQ4_XS")
RANDOM = 4
ROUNDS = 7


def main() -> None:
    """Compare, model by model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["demo"])
    for model in parser.parse_args().models:
        checkpoint = open_checkpoint(model)
        fast = AllocationConfig(bits=BITS, search=SearchConfig(tokens_per_second=1.0))
        plan = make_plan(checkpoint, requests(fast)[0], GGUF)
        assert plan.space is not None
        mixes: dict[str, Allocation] = {
            name: presets.preset(name, checkpoint, "gguf") for name in PRESETS
        }
        candidates = {
            module: dict.fromkeys([*names, *(allocation[module] for allocation in mixes.values())])
            for module, names in plan.space.candidates.items()
        }
        limit = speed_profile.speed_limit(1.0, checkpoint, GGUF, candidates, Progress())
        rng = random.Random(1)
        for n in range(RANDOM):
            mixes[f"random-{n}"] = {m: rng.choice(list(own)) for m, own in candidates.items()}
        measured = measure(checkpoint, mixes)
        print(f"{checkpoint.name}, tokens a second (best turn in brackets)")
        for name, allocation in mixes.items():
            predicted, (middle, best) = limit.predicted(allocation), measured[name]
            print(
                f"{name:10} predicted {predicted:7.1f}, measured {middle:7.1f} ({best:.1f}): "
                f"{predicted / middle - 1:+.1%} ({predicted / best - 1:+.1%})"
            )


def measure(checkpoint: Checkpoint, mixes: dict[str, Allocation]) -> dict[str, tuple[float, float]]:
    """Tokens a second of an answer: the median of several turns, and the best."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.gguf" for name in mixes]
        for path, allocation in zip(paths, mixes.values(), strict=True):
            GGUF.write(checkpoint, allocation, random_weights(checkpoint), path, "{}")
        speeds = bench(paths, prompt=[128], batch=[1], rounds=ROUNDS).speeds
    return {Path(one.name).stem: (one.answer_rate, one.fastest) for one in speeds}


if __name__ == "__main__":
    main()
