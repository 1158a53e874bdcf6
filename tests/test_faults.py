"""What goes wrong is one sentence and exit code 2, said early, with nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bitquilt import pipeline
from bitquilt.forecast import disk
from bitquilt.targets.gguf import writing
from tests.factories import tiny_checkpoint
from tests.quick import invoke

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(tmp_path):
    return tiny_checkpoint(tmp_path / "models", layers=1)


@pytest.fixture
def early(monkeypatch):
    """What is wrong must be found before any long work."""

    def begun(*_):
        raise AssertionError("the long work had begun")

    monkeypatch.setattr(pipeline, "collect_statistics", begun)


@pytest.fixture
def refused(tmp_path, capfd):
    """Run a command that must be refused; gives the one sentence."""

    def run(*arguments):
        assert invoke(*arguments) == 2
        said = capfd.readouterr()
        *progress, sentence = said.err.splitlines()
        assert said.out == ""
        assert sentence.startswith("bitquilt: ")
        assert not any(line.startswith("bitquilt: ") or "Traceback" in line for line in progress)
        left = [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
        assert left == []
        return sentence.removeprefix("bitquilt: ")

    return run


def quantize(model: Path, output: Path, *more: str | Path) -> list[str | Path]:
    asked = [] if {"--bits", "--size", "--recipe"} & {*map(str, more)} else ["--bits", "4.5"]
    return ["quantize", model, "-o", output, *asked, *more]


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"not a safetensors file")


def contradict_shapes(model: Path) -> None:
    change(model / "config.json", intermediate_size_mlp=1024)


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def damage_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


def enlarge_tokenizer(model: Path) -> None:
    change(model / "config.json", vocab_size=300)
    weights = load_file(model / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(weights | {name: weights[name][:300].clone()}, model / "model.safetensors")


def damage_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def other_architecture(model: Path) -> None:
    change(model / "config.json", model_type="mamba")


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_weights, ["model.safetensors cannot be read", "download it again"]),
        (remove_weights_header, ["model.safetensors cannot be read", "download it again"]),
        (contradict_shapes, ["config.json asks for", "intermediate_size_mlp"]),
        (remove_tokenizer, ["no tokenizer.json"]),
        (damage_tokenizer, ["tokenizer.json"]),
        (enlarge_tokenizer, ["tokenizer", "300"]),
        (damage_config, ["config.json cannot be read as JSON"]),
        (other_architecture, ["MambaForCausalLM", "backbone.embeddings.weight"]),
    ],
)
def test_a_checkpoint_that_is_broken(model, tmp_path, refused, damage, words):
    damage(model)
    sentence = refused(*quantize(model, tmp_path / "out"))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(model, tmp_path, refused, value):
    weights = load_file(model / "model.safetensors")
    weights[Q][5, 7] = value
    save_file(weights, model / "model.safetensors")
    sentence = refused(*quantize(model, tmp_path / "out"))
    assert Q in sentence
    assert "NaN or infinite" in sentence
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".work"]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "1"], ["--bits 1 is too small", "at least 1.5625 bits in gguf", "--bits 3"]),
        (["--size", "100kB"], ["100.00 kB is too small", "--size 1"]),
        (["--size", "1GB"], ["1.00 GB is too large", "--bits"]),
        (["--bits", "many"], ["'many' is not a list of numbers", "quantize --help"]),
        (["--bits", "0"], ["--bits is 0; give a number that is greater than 0 and at most 32"]),
        (["--size", "huge"], ["--size is 'huge', which is not a size", "600MB"]),
        (["--to", "onnx"], ["'onnx' is not one of", "gguf"]),
        (["--recipe", "Q4_K_M", "--to", "mlx"], ["Q4_K_M", "4bit-g64"]),
        (["--recipe", "mine.yaml"], ["mine.yaml is neither a recipe file"]),
        (["--recipe", "none.json"], ["none.json does not exist"]),
        (["--calibration", "none.txt"], ["none.txt", "check the path"]),
        (["--calibration", "words.docx"], ["words.docx", ".txt"]),
        (["--fast"], ["No such option", "--help"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_request_that_makes_no_sense(model, tmp_path, refused, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.docx").write_text("some words")
    sentence = refused(*quantize(model, tmp_path / "out", *options))
    for word in words:
        assert word in sentence


@pytest.mark.usefixtures("early")
def test_models_that_are_none(model, tmp_path, refused):
    wrong = tmp_path / "model.bin"
    wrong.write_bytes(b"GGUF" + bytes(100))
    assert "without the extension .gguf" in refused(*quantize(wrong, tmp_path / "out"))
    assert "does not exist" in refused(*quantize(tmp_path / "none", tmp_path / "out"))
    weights = model / "model.safetensors"
    assert f"give its directory: {model}" in refused(*quantize(weights, tmp_path / "out"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refused(*quantize(empty, tmp_path / "out"))
    assert "config without weights" in refused(*quantize(model / "config.json", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("early")
def test_places_that_cannot_be_written(model, tmp_path, refused):
    file = tmp_path / "file"
    file.write_text("precious")
    assert str(file) in refused(*quantize(model, file))
    assert str(file) in refused(*quantize(model, tmp_path / "out", "--work-dir", file))
    assert "/proc/out" in refused(*quantize(model, Path("/proc/out")))
    taken = tmp_path / "out" / "tiny-llama4_text-4.5bit.gguf"
    taken.mkdir(parents=True)
    assert f"{taken} is a directory" in refused(*quantize(model, tmp_path / "out"))
    thesis = tmp_path / "out" / "tiny-llama4_text-4.5bit-mlx" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    assert "did not write" in refused(*quantize(model, tmp_path / "out", "--to", "mlx"))
    assert [path.read_text() for path in (file, thesis)] == ["precious", "precious"]


@pytest.mark.usefixtures("early")
def test_a_disk_too_small_for_the_file(model, tmp_path, refused, small_disk):
    sentence = refused(*quantize(model, small_disk, "--work-dir", tmp_path / "work"))
    assert "free space, or choose other directories" in sentence
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up(model, tmp_path, refused, small_disk, monkeypatch):
    monkeypatch.setattr(disk.DiskUse, "lacking", "")  # something else fills it
    sentence = refused(*quantize(model, tmp_path / "out", "--work-dir", small_disk / "work"))
    assert "the disk is full; free space or choose another directory" in sentence


def test_a_disk_that_fills_up_while_the_file_is_written(model, tmp_path, refused, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_tensor_data", full)
    sentence = refused(*quantize(model, tmp_path / "out"))
    assert "tiny-llama4_text-4.5bit.gguf was not written: the disk is full" in sentence
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".work"]
