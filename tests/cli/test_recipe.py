"""``bitquilt recipe`` and ``bitquilt compare`` at a shell."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

from bitquilt.cli.compare import _types_cell
from tests.allocation.test_stored_mix import TYPES, gguf_file
from tests.factories import tiny_checkpoint
from tests.models.tiny_gguf import write_gguf
from tests.quick import invoke

CUT = "it ends within output_norm.weight; it is truncated or damaged: download it again"


def test_from_a_file_into_a_recipe(tmp_path: Path, capfd) -> None:
    path, into = gguf_file(tmp_path, TYPES), tmp_path / "theirs.json"
    assert invoke("recipe", "from", str(path), "-o", str(into)) == 0
    assert json.loads(into.read_text())["pin"]["token_embd"] == "Q8_0"
    said = capfd.readouterr()
    assert said.out == f"{into}\n"
    assert "bitquilt does not write Q1_0" in said.err
    assert invoke("recipe", "from", str(path), "--json") == 0
    assert json.loads(capfd.readouterr().out)["notes"]


def test_export_and_difference(tmp_path: Path, capfd) -> None:
    path = gguf_file(tmp_path, TYPES)
    assert invoke("recipe", "export", str(path)) == 0
    said = capfd.readouterr()
    assert "^blk\\.0\\.attn_v\\.weight$=q6_k\n" in said.out
    assert "--tensor-type-file" in said.err
    (tmp_path / "other").mkdir()
    other = gguf_file(tmp_path / "other", TYPES | {"blk.0.attn_q": "Q6_K"})
    assert invoke("recipe", "diff", str(path), str(other)) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first == f"1 of {len(TYPES)} matrices have other types"
    assert second == "model.layers.0.self_attn.q_proj  Q4_K → Q6_K"
    assert invoke("recipe", "diff", str(path)) == 2
    assert "takes two files, not 1" in capfd.readouterr().err


def test_files_that_name_no_matrix_alike_are_not_put_side_by_side(tmp_path: Path, capfd) -> None:
    path = gguf_file(tmp_path, {"blk.0.attn_q": "Q6_K"})
    (tmp_path / "other").mkdir()
    other = gguf_file(tmp_path / "other", {"blk.1.attn_q": "Q6_K"})
    assert invoke("recipe", "diff", str(path), str(other)) == 2
    assert "name no matrix alike: they are of other models" in capfd.readouterr().err
    assert invoke("compare", str(path), str(other)) == 0
    assert "so that none are put side by side" in capfd.readouterr().err


def test_compare(tmp_path: Path, capfd) -> None:
    path = gguf_file(tmp_path, TYPES)
    (tmp_path / "other").mkdir()
    other = gguf_file(tmp_path / "other", TYPES | {"blk.0.attn_q": "Q6_K"})
    assert invoke("compare", str(path), str(other)) == 0
    said = capfd.readouterr().out
    assert "1 × Q4_K" in said
    assert f"1 of {len(TYPES)} matrices have other types." in said
    assert invoke("compare", str(path), str(other), "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["matrices"]["model.layers.0.self_attn.q_proj"]["types"] == ["Q4_K", "Q6_K"]
    assert found["files"][0]["bytes"] == path.stat().st_size
    assert invoke("compare", str(path), str(other), "--text", "x.txt") == 2
    assert "only with --against" in capfd.readouterr().err


def test_files_of_different_models_are_told_so(tmp_path: Path, capfd) -> None:
    directories = [
        tiny_checkpoint(tmp_path / name, "llama", hidden=hidden, layers=1)
        for name, hidden in (("one", 128), ("other", 256))
    ]
    first, second = (
        write_gguf(directory, tmp_path / f"{directory.parent.name}.gguf")
        for directory in directories
    )
    capfd.readouterr()
    assert invoke("compare", first, second) == 0
    assert re.fullmatch(
        r"the files differ in more than types: model\.embed_tokens is [\d,]+ × 128 in one\.gguf "
        r"and [\d,]+ × 256 in other\.gguf\n",
        capfd.readouterr().err,
    )


def test_a_number_of_matrices_is_on_the_line_of_their_type() -> None:
    assert _types_cell(Counter({"IQ4_NL": 20, "Q2_0": 8})) == "20 × IQ4_NL,\n8 × Q2_0"


def test_files_of_two_formats_have_no_types_to_compare(tmp_path: Path, capfd) -> None:
    source, made = tiny_checkpoint(tmp_path / "source", layers=1), tmp_path / "made"
    both = tmp_path / "both.json"
    both.write_text('{"default": {"gguf": "Q8_0", "mlx": "8bit-g64"}}')
    assert invoke("quantize", source, "--recipe", both, "--to", "both", "-o", made) == 0
    capfd.readouterr()
    assert invoke("compare", *made.glob("*.gguf"), *made.glob("*-mlx")) == 0
    said = capfd.readouterr().out
    assert "8bit-g64" in said
    assert "matrices have other types" not in said


def test_what_ends_early_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    whole = gguf_file(tmp_path, TYPES)
    cut, mlx = tmp_path / "cut.gguf", tmp_path / "mlx"
    cut.write_bytes(whole.read_bytes()[:-100])
    mlx.mkdir()
    (mlx / "config.json").write_text('{"quantization": {}}')
    header = b'{"a.weight": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}'
    (mlx / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    commands = [
        ["compare", str(whole), str(cut)],
        ["recipe", "from", str(cut)],
        ["recipe", "diff", str(cut), str(whole)],
        ["compare", str(whole), str(mlx)],
    ]
    code = (
        "import sys; from bitquilt.cli.main import main\n"
        f"for words in {commands}:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2 False"] * 4
    *of_gguf, of_mlx = done.stderr.splitlines()
    assert of_gguf == [f"bitquilt: {cut} cannot be read as GGUF: {CUT}"] * 3
    assert "model.safetensors cannot be read (it ends within its tensors); it is trunc" in of_mlx
