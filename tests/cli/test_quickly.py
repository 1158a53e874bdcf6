"""What is plainly wrong is refused before the heavy libraries are imported to look at it."""

from __future__ import annotations

import os
import subprocess
import sys

import bitquilt
from bitquilt.gguf.container import encode_header
from bitquilt.runtime.workdir import WorkDir
from tests.test_imports import HEAVY

WRONG = {
    (
        "quantize",
        "demo",
        "--bits",
        "0",
    ): "--bits is 0; give a number that is greater",
    (
        "plan",
        "demo",
        "--bits",
        "4,nan",
    ): "--bits is nan; give a number that is greater",
    ("quantize", "demo", "--size", "5XB"): "--size is '5XB', which is not a size; write it like",
    ("search", "demo"): "how small should it be? give --bits 4.5 for each weight, --size for",
    ("quantize", "demo", "--recipe", "nix.json"): "nix.json does not exist; check the path",
    ("quantize", "demo", "--bits", "4", "--calibration", "no.txt"): "no.txt does not exist; check",
    ("plan", "demo", "--bits", "4", "--imatrix", "i.gguf"): "i.gguf does not exist; check the path",
    ("run", "nomodel", "Hi"): "nomodel has no config.json, so it is not a Hugging Face model",
    ("chat", "missing.gguf"): "missing.gguf does not exist; check the path",
    ("serve", "empty.gguf"): "empty.gguf is empty; download it again",
    ("inspect", "text.gguf"): "text.gguf is not a GGUF file: it does not begin with the bytes",
    ("bench", "text.gguf", "missing.gguf"): "text.gguf is not a GGUF file",
    ("eval", "missing.gguf", "--against", "demo"): "missing.gguf does not exist; check the path",
    ("eval", "empty.gguf", "--against", "demo"): "empty.gguf is empty; download it again",
    (
        "card",
        "nomodel",
        "--against",
        "./away",
        "--repo",
        "a/b",
    ): "nomodel is neither a GGUF file nor",
    (
        "run",
        "demo",
        "Hi",
        "--temperature",
        "hot",
    ): "Invalid value for '--temperature': 'hot' is",
    ("plan", "demo", "--threads", "2.5"): "Invalid value for '--threads': '2.5' is not a whole",
    ("clean", "away"): "away is not a directory; give one that `quantize` or `search` wrote into",
    ("plan", "demo", "--recipe", "Q4KM"): "Q4KM is neither a recipe file (.json) nor a preset; did",
    ("search", "demo", "--recipe", "Q4_K_M", "--bits", "4"): "preset Q4_K_M decides the size",
    ("quantize", "demo", "--bits", "4", "-o", "text.gguf"): "text.gguf is a file, not a directory",
    ("card", "some.gguf", "--against", "demo", "--repo", "nix"): "nix is not a valid name of a hub",
    (
        "publish",
        "some.gguf",
        "--against",
        "demo",
        "--repo",
        "a/b",
        "--base-model",
        "c",
    ): "c is not a",
    ("tasks", "demo", "--tasks", "chess"): "there is no task chess; choose among demo",
    ("tasks", "demo", "--tasks", "dmeo"): "there is no task dmeo; did you mean demo?",
    ("tasks", "demo", "--tasks", "humaneval"): "the task humaneval runs programs that models write",
    ("serve", "demo", "--allow-origin", "chat.example"): "--allow-origin chat.example is not the",
    (
        "serve",
        "demo",
        "--allow-origin",
        "https://a.example/b",
    ): "--allow-origin https://a.example/b",
    ("serve", "demo", "--allow-host", "box.lan:8080"): "--allow-host box.lan:8080 is not a host",
    ("serve", "demo", "--allow-host", "http://box.lan"): "--allow-host http://box.lan is not a",
    ("run", "gpt0", "Hi"): "gpt0 is not in the local cache and HF_HUB_OFFLINE is set",
    ("eval", "demo", "--against", "demo"): "demo is a model, not a quantized file of one;",
    ("eval", "away", "--against", "demo"): "away does not exist; check the path",
    ("compare", "missing.gguf", "text.gguf"): "missing.gguf does not exist; check the path",
    ("recipe", "from", "missing.gguf"): "missing.gguf does not exist; check the path",
    ("recipe", "diff", "demo", "demo"): "demo is a model, not a quantized file of one;",
    ("compare", "some.gguf", "demo"): "demo is a model, not a quantized file of one;",
    ("report", "nomodel"): "nomodel is not a work directory of `bitquilt quantize`; give the one",
    ("imatrix", "demo", "-o", "nomodel"): "nomodel is a directory where a file should go; give",
    ("search", "demo", "--recipe", "Q4_K_M"): "Q4_K_M alone leaves nothing to search; give --bits",
    ("imatrix", "demo", "--calibration", "no.txt"): "no.txt does not exist; check the path",
    ("imatrix", "demo", "--base", "no.gguf"): "no.gguf does not exist; check the path",
    ("trim", "demo", "--keep", "no.txt", "-o", "t"): "no.txt does not exist; check the path",
    ("quantize", "demo", "--bits", "4", "--base", "no.gguf"): "no.gguf does not exist; check the",
    ("search", "demo", "--bits", "4", "--work-dir", "nomodel/.."): "work directory nomodel/.. has",
    ("report", "away.work"): "away.work does not exist; check the path",
    ("quantize", "demo", "--size", "5MB,6MB"): "--size takes one size, not '5MB,6MB'; give the",
    (
        "quantize",
        "demo",
        "--bits",
        "600MB",
    ): "Invalid value for '--bits': '600MB' is a size; give --size 600MB; see bitquilt",
    (
        "plan",
        "demo",
        "--bits",
        "4",
        "--device",
        "gpu",
    ): "Invalid value for '--device': 'gpu' is not one of 'auto', 'cpu', 'cuda'; did you mean "
    "cuda? See",
    (
        "plan",
        "demo",
        "--bits",
        "4",
        "--to",
        "ggml",
    ): "Invalid value for '--to': 'ggml' is not one of 'gguf', 'mlx', 'both'; did you mean gguf?",
    (
        "inspect",
        "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main",
    ): "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main is an address of the hub; give "
    "the model's id: Qwen/Qwen3-0.6B",
    ("run", "https://a.example/m.gguf", "Hi"): "https://a.example/m.gguf is an address of the web;",
    ("plan", "hf.co/a/b", "--bits", "4"): "hf.co/a/b is an address of the hub; give the model's",
    (
        "inspect",
        "several",
    ): "several has GGUF files but no config.json; give one of them: several/one.gguf, "
    "several/two.gguf",
    ("run", "some.gguf", "Hi", "--draft", "demo"): "demo is a model, not a quantized file of one;",
    ("serve", "some.gguf", "--draft", "no.gguf"): "no.gguf does not exist; check the path",
    ("run", "some.gguf", "Hi", "--draft", "text.gguf"): "text.gguf is not a GGUF file: it does not",
    ("run", "some.gguf", "Hi", "--draft", "mlx"): "mlx cannot be the draft model of some.gguf",
    ("recipe", "from", "some.gguf", "-o", "nomodel"): "nomodel is a directory where a file should",
    (
        "plan",
        "demo",
        "--bits",
        "1",
    ): "--bits 1 is too small: a weight takes at least 1.5625",
    (
        "quantize",
        "demo",
        "--bits",
        "1,1.5",
        "--to",
        "both",
    ): "--bits 1.5 is too small: a weight takes at least 1.5625 bits in gguf and 2.25 bits in mlx;",
    ("search", "demo", "--bits", "2", "--to", "mlx"): "--bits 2 is too small: a weight takes at",
    ("run", "What", "demo"): "MODEL comes before PROMPT; write `bitquilt run demo What`; see",
    ("run", "What", "is", "2+3?", "some.gguf"): "MODEL comes before PROMPT; write `bitquilt run "
    "some.gguf 'What is 2+3?'`; see",
    ("run", "demo", "What", "is", "2+3?"): "PROMPT has no quotes; write `bitquilt run demo 'What "
    "is 2+3?'`; see",
    (
        "inspect",
        "cut.gguf",
    ): "cut.gguf cannot be read as GGUF: it ends within its header; it",
    ("quantize", "cut.gguf", "--bits", "4"): "cut.gguf cannot be read as GGUF: it ends within its",
    ("compare", "some.gguf", "cut.gguf"): "cut.gguf cannot be read as GGUF: it ends within its",
    ("quantize", "demo", "--bits", "4", "--calibration", "latin-1.txt"): "latin-1.txt, line 1: not",
    ("eval", "some.gguf", "--against", "demo", "--text", "empty.txt"): "empty.txt holds no text;",
    ("trim", "demo", "--keep", "cut.gguf", "-o", "t"): "cut.gguf is neither .txt nor .jsonl",
    ("quantize", "demo", "--bits", "4", "-o", "used"): "work directory used/demo.work is in use by",
    ("search", "few-Q4_0.gguf", "--bits", "4", "-o", "used"): "work directory used/few.work is in",
    ("quantize", "demo", "--bits", "4", "-o", "/proc/x"): "/proc/x was not written: No such file",
}
SOURCE = os.path.dirname(os.path.dirname(bitquilt.__file__))
SLOW = {*HEAVY} - {"gguf", "numpy"}
"""Those two read the header of a GGUF file, and take a tenth of a second."""
IN_ONE_PROCESS = """
import sys
sys.modules["lm_eval"] = None  # it has thousands of tasks, and takes seconds to say so
from bitquilt.cli.main import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as end:
        print(end.code, *sorted(set(sys.modules) & set({heavy})))
"""


def test_simple_mistakes_are_told_at_once(tmp_path):
    (tmp_path / "nomodel").mkdir()
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("no GGUF")
    for name in ("some.gguf", "few-Q4_0.gguf"):
        (tmp_path / name).write_bytes(encode_header({}, []))
    (tmp_path / "cut.gguf").write_bytes(encode_header({}, [])[:20])
    (tmp_path / "latin-1.txt").write_text("Grüße aus Köln", "latin-1")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "several").mkdir()
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / "several" / name).write_text("GGUF")
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "config.json").write_text('{"quantization": {}}')
    (tmp_path / "mlx" / "model.safetensors").touch()
    with WorkDir(tmp_path / "used" / "demo.work", {}), WorkDir(tmp_path / "used" / "few.work", {}):
        done = subprocess.run(
            [sys.executable, "-c", IN_ONE_PROCESS.replace("{heavy}", repr(SLOW))],
            input="\n".join(map(" ".join, WRONG)),
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": SOURCE},
        )
    said = done.stderr.splitlines()
    for words, sentence, line in zip(WRONG, WRONG.values(), said, strict=True):
        assert line.startswith(f"bitquilt: {sentence}"), words
    assert done.stdout.splitlines() == ["2"] * len(WRONG)
