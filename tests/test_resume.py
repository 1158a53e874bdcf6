"""Killed at any moment, the same command ends with the bytes of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from tests.factories import tiny_checkpoint
from tests.quick import command

KILLS = (
    "settings.json",
    "head.safetensors",
    "model.layers.0.self_attn.q_proj/0.safetensors",
    "teacher/*.safetensors",
    ("teacher/*.safetensors", 2),
    "tiny-llama4_text-4.5bit.gguf",
    "tiny-llama4_text-4.5bit-mlx",
)
"""What each run, continuing the one before, is killed over: written, but not yet in its place.
``teacher/*`` is the original on the first text that a search reads, and then on the first windows
that decide between its results."""
KILLS_OF_A_LARGE_ONE = (
    "decided/gguf/*.json",
    "polished/model.layers.0.self_attn.q_proj/0.safetensors",
    "polished/model.embed_tokens/0.safetensors",
    "rounded/model.layers.0.self_attn.q_proj/0.safetensors",
    "decided/mlx/*.json",
    "tiny-llama4_text-4.5bit.gguf",
    "tiny-llama4_text-4.5bit-mlx",
)
"""What runs are killed over that remove candidates. The fourth is over the first of MLX: those of
GGUF are gone then, and its matrices stay as they were decided and polished."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the command line in a process of its own; gives its exit code and output.

    The processes are forked from one that has imported everything, which takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.quick"])
    log = tmp_path_factory.mktemp("log") / "log"

    def run(arguments, die_at=None, by=signal.SIGKILL, large_from=None):
        process = context.Process(target=command, args=(arguments, log, die_at, by, large_from))
        process.start()
        process.join()
        return process.exitcode, log.read_text()

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), layers=1)


def quantize(model: Path, output: Path, *more: str) -> list[str]:
    work = ["--work-dir", str(output / "work")]
    return ["quantize", str(model), "--bits", "4.5", "-o", str(output), *work, *more]


def hidden(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob(".*")}


def made(directory: Path) -> dict[str, bytes]:
    """Everything that was written but the work directory, hidden files too."""
    names = {path: path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    return {str(n): p.read_bytes() for p, n in names.items() if n.parts[0] != "work"}


def test_killed_again_and_again(run, model, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    code, said = run(quantize(model, undisturbed, "--to", "both"))
    assert code == 0, said
    for kill in KILLS:
        code, said = run(quantize(model, killed, "--to", "both"), die_at=kill)
        assert code == -signal.SIGKILL, said
        (left,) = hidden(killed) - {".lock"}
        pattern = kill if isinstance(kill, str) else kill[0]
        assert Path(left).match(f".{Path(pattern).name}.part")
    code, said = run(quantize(model, killed, "--to", "both"))
    assert code == 0, said
    assert made(killed) == made(undisturbed)
    assert hidden(killed) == {".lock"}


def test_killed_where_candidates_have_gone(run, model, tmp_path):
    kept, killed = tmp_path / "kept", tmp_path / "killed"
    code, said = run(quantize(model, kept, "--to", "both", "--keep-work"), large_from=0)
    assert code == 0, said
    asked = quantize(model, killed, "--to", "both")
    for kill in KILLS_OF_A_LARGE_ONE:
        code, said = run(asked, die_at=kill, large_from=0)
        assert code == -signal.SIGKILL, (kill, said)
    for _ in range(2):  # the second finds no matrices, and rounds what was decided
        code, said = run(asked, large_from=0)
        assert code == 0, said
        assert "are used, as an earlier run has decided" in said
        assert made(killed) == made(kept)
        assert not any((killed / "work" / name).exists() for name in ("rounded", "polished"))


def test_sigterm_leaves_nothing_half_written_and_says_what_continues(run, model, tmp_path):
    for stop in ("head.safetensors", "tiny-llama4_text-4.5bit.gguf"):
        code, said = run(quantize(model, tmp_path), die_at=stop, by=signal.SIGTERM)
        assert code == 143, said
        last = said.splitlines()[-1]
        assert last == ("bitquilt: stopped by SIGTERM; the same command continues where it stopped")
        assert "Traceback" not in said
        assert hidden(tmp_path) == {".lock"}
        assert not list(tmp_path.glob("*.gguf"))
    code, said = run(quantize(model, tmp_path))
    assert code == 0, said


def test_other_settings_are_refused_by_name(run, model, tmp_path):
    code, _ = run(quantize(model, tmp_path), die_at="head.safetensors")
    assert code == -signal.SIGKILL
    (tmp_path / "mine.txt").write_text("Other words for the calibration. " * 100)
    code, said = run(quantize(model, tmp_path, "--calibration", str(tmp_path / "mine.txt")))
    assert code == 2
    assert "results of other settings (calibration: " in said
    assert len([line for line in said.splitlines() if line.startswith("bitquilt: ")]) == 1
    other = tiny_checkpoint(tmp_path, layers=1, seed=1)
    code, said = run(quantize(other, tmp_path))
    assert code == 2
    assert "results of other settings (checkpoint: " in said
    assert "Traceback" not in said


def test_a_damaged_artefact_is_one_sentence(run, model, tmp_path):
    asked = ["quantize", str(model), "--recipe", "Q8_0", "-o", str(tmp_path)]
    asked += ["--work-dir", str(tmp_path / "work")]
    assert run(asked)[0] == 0
    for place in ("polished", "rounded"):
        damaged = next((tmp_path / "work" / place).rglob("*.safetensors"))
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        code, said = run(asked)
        assert code == 2
        assert f"bitquilt: {damaged} is damaged (" in said.splitlines()[-1]
        damaged.write_bytes(whole)
