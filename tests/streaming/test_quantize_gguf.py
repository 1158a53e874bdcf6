"""A GGUF file of an unknown architecture becomes one of an exact size; all else is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

import bitquilt
from bitquilt import Silent, UserError
from bitquilt.cli.main import main
from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.gguf.container import read_container, read_pairs
from bitquilt.gguf.imatrix import read_imatrix, write_imatrix
from bitquilt.models import open_checkpoint
from bitquilt.streaming import writing
from bitquilt.targets import GGUF
from tests.factories import tiny_checkpoint
from tests.quick import QUICK
from tests.streaming.models import importance, stored, tensors, write_both, write_model
from tests.targets.conftest import Model

OWN = ("general.file_type", "general.quantization_version")
"""Keys of the source's that are about how it is stored."""


def quantize(folder: Path, parts: int = 1, **options) -> bitquilt.GgufResult:
    model, imatrix = write_both(folder, parts)
    options = {"imatrix": imatrix, "output": folder / "out", "threads": 2, **options}
    (made,) = bitquilt.quantize_gguf(model, progress=Silent(), **options)
    return made


@pytest.mark.parametrize("bits", [2.2, 3.5, 4.5, 7, 10])
def test_files_have_the_size_that_was_planned_within_the_budget(bits: float, tmp_path) -> None:
    made = quantize(tmp_path, bits=bits)
    (path,) = made.paths
    assert path.name == f"model-{bits:g}bit.gguf"
    assert path.stat().st_size == made.plan.nbytes
    found = stored(path)
    weights = sum(tensor.n_elements for tensor in found.values())
    actual = 8 * sum(int(tensor.n_bytes) for tensor in found.values()) / weights
    assert made.plan.bits == pytest.approx(actual)
    assert 0.97 * bits < actual <= bits
    assert {n: t.tensor_type.name for n, t in found.items() if n in made.plan.types} == {
        **made.plan.types
    }


def test_a_size_is_that_of_the_file(tmp_path: Path) -> None:
    made = quantize(tmp_path, size="900kB")
    assert 890_000 < made.paths[0].stat().st_size <= 900_000
    assert made.plan.predicted_kl is not None
    assert 0 < made.plan.predicted_kl < 1


def test_all_else_is_kept_to_the_byte(tmp_path: Path) -> None:
    model, _ = write_both(tmp_path)
    (path,) = quantize(tmp_path, bits=4.5).paths
    before, after = (read_pairs(p, read_container(p)) for p in (model, path))
    assert {k: v for k, v in before.items() if k not in OWN} == {
        k: v for k, v in after.items() if k in before and k not in OWN
    }
    source, found = stored(model), stored(path)
    assert list(found) == list(source)
    kept = [n for n in source if n.startswith(("blk.0.attn_norm", "blk.1.ssm_a", "blk.0.thin"))]
    for name in [*kept, "blk.0.ffn_gate_inp.weight", "output_norm.weight"]:
        assert found[name].tensor_type == source[name].tensor_type
        np.testing.assert_array_equal(found[name].data, source[name].data)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}
    assert fields["quantize.imatrix.file"] == "imatrix.gguf"
    assert fields["quantize.imatrix.chunks_count"] == 2
    assert json.loads(fields["bitquilt.recipe"])["default"] in {*GgmlType.__members__}


def test_matrices_are_rounded_as_llama_quantize_does_expert_by_expert(tmp_path: Path) -> None:
    made = quantize(tmp_path, recipe="Q4_K_M")
    (path,) = made.paths
    means = {
        name: entry.sums / np.maximum(entry.counts, 1)[:, None]
        for name, entry in read_imatrix(tmp_path / "imatrix.gguf").entries.items()
    }
    source, found = stored(tmp_path / "model-BF16.gguf"), stored(path)
    assert made.plan.types["blk.1.ffn_down_exps.weight"] == "Q6_K"
    checked = 0
    for name, kind in made.plan.types.items():
        if name not in means:
            continue
        weight = gguf.dequantize(source[name].data, GgmlType.BF16)
        weight = weight.reshape(-1, *weight.shape[-2:])
        own = found[name].data.reshape(len(weight), weight.shape[1], -1)
        for expert, squares in enumerate(means[name]):
            if not squares.any():
                continue  # no token reached it; llama.cpp takes 1 there, and we the others' mean
            theirs = libgguf.quantize_rows(weight[expert], GgmlType[kind], imatrix=squares)
            np.testing.assert_array_equal(own[expert], theirs)
            checked += 1
    assert checked == 2 * (4 + 2 + 2 * 2)


def test_parts_become_as_many_parts(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "whole").mkdir()
    whole = stored(quantize(tmp_path / "whole", bits=4).paths[0])
    monkeypatch.setattr(writing, "CHUNK_WEIGHTS", 3000)  # many chunks make the same bytes
    made = quantize(tmp_path, parts=3, bits=4)
    assert [path.name for path in made.paths] == [
        f"model-4bit-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert sum(path.stat().st_size for path in made.paths) == made.plan.nbytes
    found = {name: t for path in made.paths for name, t in stored(path).items()}
    assert list(found) == list(whole)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name].data, tensor.data)
    fields = gguf.GGUFReader(made.paths[2]).fields
    assert fields["split.no"].contents() == 2
    assert fields["split.count"].contents() == 3


def test_neither_torch_nor_transformers_is_loaded(tmp_path: Path) -> None:
    model, imatrix = write_both(tmp_path)
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'mlx'), None))\n"
        "from bitquilt.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    words = [str(model), "--imatrix", str(imatrix), "--bits", "4", "-o", str(tmp_path / "out")]
    package = str(Path(bitquilt.__file__).parents[1])
    for verb in ("plan", "quantize"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb, *words],
            env=os.environ | {"PYTHONPATH": package},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "model-4bit.gguf" in done.stdout


def test_what_has_no_importance_is_said_by_name(tmp_path: Path, capsys) -> None:
    weights = tensors()
    matrix = importance(weights)
    entries = {n: e for n, e in matrix.entries.items() if n != "blk.1.attn_k.weight"}
    write_imatrix(tmp_path / "i.gguf", bitquilt.ImportanceMatrix(entries=entries))
    model = write_model(tmp_path / "m.gguf", weights)
    words = ["quantize", str(model), "--imatrix", str(tmp_path / "i.gguf"), "--bits", "3"]
    main([*words, "-o", str(tmp_path / "out"), "--json"])
    out, err = capsys.readouterr()
    (said,) = json.loads(out)["outputs"]
    assert said["without_importance"] == ["blk.1.attn_k.weight"]
    assert "no entry for blk.1.attn_k.weight, so all their inputs count alike" in err
    assert "No token reached some experts of blk.0.ffn_up_exps.weight" in err
    assert "blk.0.thin.weight, blk.1.thin.weight kept as in the source: no block divides" in err
    assert said["kept"]["blk.0.ssm_conv1d.weight"] == "llama.cpp keeps such tensors"


def test_plan_gives_what_quantize_writes(tmp_path: Path, capsys) -> None:
    model, imatrix = write_both(tmp_path)
    words = [str(model), "--imatrix", str(imatrix), "--size", "800kB", "-o", str(tmp_path / "out")]
    main(["plan", *words, "--json"])
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert not (tmp_path / "out").exists()
    main(["plan", *words])
    assert f"{plan['nbytes']:,} bytes on disk" in capsys.readouterr().out
    main(["quantize", *words])
    assert "Nothing was measured; `bitquilt eval" in capsys.readouterr().out
    path = tmp_path / "out" / "model-800kB.gguf"
    assert path.stat().st_size == plan["nbytes"]
    assert {n: t.tensor_type.name for n, t in stored(path).items() if n in plan["types"]} == (
        plan["types"]
    )


def test_a_recipe_goes_by_the_names_of_tensors(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.json"
    recipe.write_text(
        json.dumps(
            {
                "default": "IQ4_NL",
                "rules": [{"match": "exps", "type": "Q3_K"}],
                "pin": {"output": "Q6_K"},
            }
        )
    )
    types = quantize(tmp_path, recipe=recipe).plan.types
    assert types["output.weight"] == "Q6_K"
    assert types["blk.1.ffn_up_exps.weight"] == "Q3_K"
    assert types["blk.1.ssm_out.weight"] == "IQ4_NL"
    pinned = quantize(tmp_path, recipe=recipe, bits=4).plan.types
    assert pinned["output.weight"] == "Q6_K"
    assert len({*pinned.values()}) > 2
    recipe.write_text('{"default": "Q4_K"}')
    with pytest.raises(UserError, match=r"Q4_K on blk\.0\.ssm_out\.weight, whose rows of 96"):
        quantize(tmp_path, recipe=recipe)
    recipe.write_text('{"default": "Q8_0", "pin": {"head": "Q6_K"}}')
    with pytest.raises(UserError, match='pins "head", which is not a matrix of model-BF16'):
        quantize(tmp_path, recipe=recipe)
    recipe.write_text('{"default": "Q8_0", "sequential": true}')
    with pytest.raises(UserError, match=r'"sequential": true, but this model is rounded once'):
        quantize(tmp_path, recipe=recipe)


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"10.00 kB is too small: .* size='\d+B' or more") as error:
        quantize(tmp_path, size="10kB")
    least = str(error.value).split("size='")[-1].split("B'")[0]
    assert quantize(tmp_path, size=f"{least}B").plan.nbytes == int(least)
    with pytest.raises(UserError, match=r"Q4_K_L is neither a recipe file .* did you mean Q4_K_"):
        quantize(tmp_path, recipe="Q4_K_L")
    with pytest.raises(UserError, match="preset Q4_K_M decides the size itself"):
        quantize(tmp_path, recipe="Q4_K_M", bits=4)
    with pytest.raises(UserError, match="demo is not a GGUF file"):
        bitquilt.quantize_gguf("demo", imatrix=tmp_path / "imatrix.gguf", bits=4)
    with pytest.raises(UserError, match="with imatrix the model is not run, so tune has no effect"):
        quantize(tmp_path, bits=4, tune=True)
    with pytest.raises(UserError, match="becomes a GGUF file alone"):
        quantize(tmp_path, bits=4, to="mlx")
    with pytest.raises(UserError, match="quantize_gguf"):
        bitquilt.quantize(tmp_path / "model-BF16.gguf", imatrix=tmp_path / "imatrix.gguf", bits=4)


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    weights = tensors()
    weights["blk.1.ffn_down_exps.weight"][2, -1, -1] = np.inf  # no sampled row has it
    model = write_model(tmp_path / "m.gguf", weights, parts=2)
    write_imatrix(tmp_path / "i.gguf", importance(weights))
    with pytest.raises(UserError, match=r"NaN or infinity in blk\.1\.ffn_down_exps"):
        bitquilt.quantize_gguf(
            model, imatrix=tmp_path / "i.gguf", recipe="Q8_0", output=tmp_path / "out"
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    quantize(tmp_path, bits=4)
    quantize(tmp_path, bits=4)
    (tmp_path / "out" / "model-4bit.gguf").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"model-4bit\.gguf exists, and bitquilt did not write it"):
        quantize(tmp_path, bits=4)


def test_the_engine_runs_the_file(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "llama")
    text = {name: QUICK[name] for name in ("text_budget", "calibration")}
    imatrix = tmp_path / "imatrix.gguf"
    bitquilt.make_imatrix(directory, output=imatrix, progress=Silent(), **text)
    source = Model(directory, open_checkpoint(directory))
    base = tmp_path / "base.gguf"
    GGUF.write(source.checkpoint, source.on("F32"), source.packed, base, "{}")
    (made,) = bitquilt.quantize_gguf(
        base, imatrix=imatrix, bits=4.5, output=tmp_path, progress=Silent()
    )
    with open_llamacpp(made.paths[0], threads=1) as engine:
        tokens = np.array([engine.tokenize("Whole words, and what follows them")])
        (logits,) = engine.logits(tokens)
    assert np.isfinite(logits).all()
