"""The command line itself: help, speed, and text made for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitquilt
from tests.factories import tiny_checkpoint
from tests.quick import invoke

ROOT = Path(__file__).parent.parent.parent
MOBILELLM = ROOT / "examples" / "mobilellm-r1-950m" / "config.json"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help(capfd, arguments):
    assert invoke(*arguments) == 0
    said = capfd.readouterr()
    assert said.err == ""
    if arguments == ["--version"]:
        assert said.out == f"bitquilt, version {bitquilt.__version__}\n"
    else:
        summaries = said.out.split("Commands:\n")[1].splitlines()
        names = [line.split()[0] for line in summaries]
        assert {"eval", "inspect", "plan", "quantize", "run", "search"} <= set(names)
        assert all(line.endswith(".") and not line.endswith("..") for line in summaries)


@pytest.mark.parametrize("verb", ["quantize", "plan", "inspect", "run"])
def test_help_of_a_verb(capfd, verb):
    assert invoke(verb, "-h") == 0
    text = capfd.readouterr().out
    assert invoke(verb, "--help") == 0
    assert capfd.readouterr().out == text
    assert text.startswith(f"Usage: bitquilt {verb} [OPTIONS] MODEL")
    assert "--json" in text
    assert "\\b\n" not in text
    assert max(map(len, text.splitlines())) <= 80


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "bitquilt.cli.main", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment)


def test_help_is_quick():
    """0.3 s are promised: of processor time, the best of five, whatever else the machine does."""
    times = []
    for _ in range(5):
        before = os.times()
        run("--help")
        after = os.times()
        user, system = (
            getattr(after, t) - getattr(before, t) for t in ("children_user", "children_system")
        )
        times.append(user + system)
    assert min(times) < 0.3


def test_no_arguments_are_help(capfd):
    assert invoke() == 2
    assert "Usage: bitquilt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quantise"], "No such command 'quantise'"),
        (["plan"], "Missing argument 'MODEL'; see bitquilt plan --help"),
        (["run", "demo"], "Missing argument 'PROMPT'; see bitquilt run --help"),
        (["plan", "demo", "--bits"], "Option '--bits' requires an argument"),
        (["plan", "demo", "--bits", "4", "--bits", "5"], "--bits is given 2 times; put several"),
        (["quantize", "demo", "-o", "a", "--output=b"], "--output is given 2 times; give it once"),
    ],
)
def test_wrong_use_is_one_sentence(capfd, arguments, sentence):
    assert invoke(*arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"bitquilt: {sentence}")
    assert said.err.count("\n") == 1


def test_plan_prints_the_published_breakdown(capfd):
    recipe = ROOT / "examples" / "mlx-published-950m.json"
    assert invoke("plan", MOBILELLM, "--recipe", recipe, "--to", "mlx") == 0
    said = capfd.readouterr()
    assert said.err == ""
    rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line.strip()}
    assert rows["part"] == ["part", "bytes", "MB", "share"]  # 752, 359 and 45 MiB
    assert [rows[part][2] for part in ("embedding", "codes", "scales")] == ["788", "377", "47"]
    assert rows["v_proj"][1:] == ["21", "×", "4bit-g64,", "1", "×", "8bit-g64"]


def test_plan_fits_a_terminal_and_libraries_keep_quiet(tmp_path):
    """Transformers warns of a start token outside the vocabulary; `inspect` is for that."""
    model = tiny_checkpoint(tmp_path)
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token_id": 128000}))
    said = run("plan", model, "--bits", "4.7", "--to", "both")
    assert said.stderr == ""
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert "down_proj" in said.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "{}", "--bits", "4"),
        ("quantize", "demo", "--bits", "4", "-o", "{}"),
        ("quantize", "demo", "--bits", "4", "--calibration", "{}.txt"),
        ("quantize", "demo", "--recipe", "{}.json"),
        ("run", "{}"),  # a question where the model's place is
    ],
)
def test_a_name_that_is_too_long_for_a_file_is_one_sentence(words, capsys):
    long = "é" * 300
    assert invoke(*(word.format(long) for word in words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("bitquilt: " + long[:40])
    assert said.endswith("… is longer than the name of a file can be; check the path\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_without_room_is_one_sentence():
    command = [sys.executable, "-m", "bitquilt.cli.main", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("bitquilt: the output cannot be written: No space left")
    assert done.stderr.count("\n") == 1
