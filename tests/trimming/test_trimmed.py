"""``quantize --trim``: trimmed and quantized by one command."""

from __future__ import annotations

import json

import pytest

from bitquilt import QuantizeConfig, plan, quantize, trim_vocabulary
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.report.page import make_report
from bitquilt.report.run_record import load, published_command
from bitquilt.runtime.progress import Silent
from bitquilt.targets import MLX
from bitquilt.trimming.config import trim_config
from bitquilt.trimming.trimmed import trimmed_model
from tests.factories import tiny_checkpoint
from tests.models.llamacpp_vocab import tokenize
from tests.quick import QUICK, invoke
from tests.trimming.test_trim import KEPT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, and what one command made of a model in it."""
    folder = tmp_path_factory.mktemp("one-command")
    source = tiny_checkpoint(folder, "qwen3", layers=1)
    (folder / "mine.txt").write_text(KEPT)
    words = (str(folder / "mine.txt"), "400")
    asked = {"trim": words, "recipe": "Q8_0", "output": folder / "out", **QUICK}
    first = quantize(source, **asked, progress=Silent())
    return folder, source, asked, first


def test_the_files_have_the_tokens_that_were_asked_for(made):
    folder, source, asked, first = made
    (gguf,) = first.outputs
    small = folder / "out" / "tiny-qwen3-mine-400"
    tokenizer = load_tokenizer(small)
    assert len(tokenizer) == 400 < len(load_tokenizer(source))
    assert gguf.path.name == "tiny-qwen3-mine-400-Q8_0.gguf"
    assert tokenize(gguf.path, [KEPT], add_special=True) == [tokenizer(KEPT)["input_ids"]]
    mlx = quantize(source, **{**asked, "recipe": "8bit-g32", "to": "mlx"}, progress=Silent())
    (directory,) = mlx.outputs
    assert MLX.shapes(directory.path)["model.embed_tokens.weight"][0] == 400


def test_the_same_command_uses_the_trimmed_model_again(made):
    folder, source, asked, first = made
    small = folder / "out" / "tiny-qwen3-mine-400"
    before = (small / "model.safetensors").stat().st_mtime_ns
    again = quantize(source, **asked, progress=Silent())
    assert (small / "model.safetensors").stat().st_mtime_ns == before
    assert again.outputs[0].nbytes == first.outputs[0].nbytes
    (folder / "mine.txt").write_text(KEPT + " more of it")
    trimmed_model(source, asked["trim"], folder / "out", Silent())
    assert (small / "model.safetensors").stat().st_mtime_ns != before


def test_the_report_and_the_published_command_say_it(made):
    folder, _, _, first = made
    work = first.work_dir
    said = "Its vocabulary is trimmed to 400 of the 512 tokens of tiny-qwen3."
    assert said in make_report(work).html
    checkpoint = open_checkpoint(folder / "out" / "tiny-qwen3-mine-400")
    assert said in [finding.message for finding in checkpoint.findings]
    record = load(work)[0]
    command = published_command(record.command, "somebody/else", checkpoint.trimmed)
    assert command.startswith("bitquilt quantize tiny-qwen3 ")
    assert "--trim mine.txt,400" in command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["64k"], "not which; name a language or a text too, as in en,64k"),
        (["en", "4k", "8k"], "the numbers 4k and 8k; give one"),
        (["klingon"], "names klingon, which is not a text that exists"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        QuantizeConfig(bits=4, trim=words)


def test_words_mean_what_the_options_of_trim_do(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a")
    config = trim_config(["de", str(text), "en", "32K"], "here")
    assert (config.languages, config.size, config.keep) == (("de", "en"), 32_000, (str(text),))
    assert QuantizeConfig(bits=4, trim=["en", "64k"]).arguments() == [
        "--bits",
        "4",
        "--trim",
        "en,64k",
    ]


def test_a_plan_needs_no_trimmed_model(made, tmp_path):
    """Only the bytes of the tokenizer depend on which tokens are kept, and padding on them."""
    _, source, asked, first = made
    found = tmp_path / "found"
    wanted = {"trim": asked["trim"], "recipe": "Q8_0"}
    (before,) = plan(source, **wanted, output=found)
    (after,) = plan(source, **wanted, output=asked["output"])  # it is there
    assert not found.exists()
    assert after.layout.total_bytes == first.outputs[0].nbytes
    depends = {"tokenizer", "metadata", "padding"}  # metadata with the padding behind the header
    parts = [
        {part: size for part, size in one.layout.breakdown.items() if part not in depends}
        for one in (before, after)
    ]
    assert parts[0] == parts[1]
    guess, size = (one.layout.breakdown for one in (before, after))
    assert guess["tokenizer"] == pytest.approx(size["tokenizer"], rel=0.1)
    assert guess["metadata"] == pytest.approx(size["metadata"], abs=32)
    said = "400 of the 512 tokens are kept. `bitquilt quantize` will choose them when it trims"
    assert [note for note in before.notes if said in note]
    assert not [note for note in after.notes if said in note]
    del wanted["recipe"]
    budgets = [{**wanted, "size": "500KB", "output": where} for where in (found, asked["output"])]
    (one,), (other,) = (plan(source, **budget) for budget in budgets)
    assert one.layout.total_bytes == other.layout.total_bytes


def test_without_a_number_the_text_says_how_many_are_kept(made, tmp_path):
    _, source, asked, _ = made
    text, _ = asked["trim"]
    (before,) = plan(source, trim=[text], recipe="Q8_0", output=tmp_path)
    trimmed = trimmed_model(source, [text], tmp_path, Silent())
    (after,) = plan(trimmed, recipe="Q8_0")
    assert before.to_dict() == after.to_dict()


def test_an_impossible_size_is_refused_before_the_trimming(made, tmp_path, capfd):
    _, source, asked, _ = made
    words = ",".join(asked["trim"])
    assert invoke("quantize", source, "--trim", words, "--size", "20KB", "-o", tmp_path) == 2
    assert "20.00 kB is too small" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert invoke("plan", source, "--trim", words, "--size", "20KB", "-o", tmp_path) == 2
    assert invoke("plan", source, "--trim", f"{asked['trim'][0]},9", "--bits", "8") == 2
    assert "ask for at least that many" in capfd.readouterr().err


def test_no_importance_matrix_goes_with_it(tmp_path):
    with pytest.raises(UserError, match="so trim has no effect"):
        QuantizeConfig(bits=4, trim=["en"], imatrix=tmp_path / "imatrix.gguf")


def test_the_command_line_takes_it(made, capfd):
    folder, source, *_ = made
    text = folder / "mine.txt"
    asked = ("--trim", f"{text},390", "--recipe", "Q8_0", "-o", folder / "cli", "--json")
    assert invoke("quantize", source, *asked) == 0
    (output,) = json.loads(capfd.readouterr().out)["outputs"]
    assert output["path"].endswith("tiny-qwen3-mine-390-Q8_0.gguf")


def test_clean_removes_the_trimmed_model_and_nothing_else(made, tmp_path, capfd):
    _, source, asked, _ = made
    text = asked["trim"][0]
    path = trimmed_model(source, [text], tmp_path, Silent())
    (path / "mine.md").write_text("a note")
    (tmp_path / "other.txt").write_text("elsewhere")
    marker = path / "trimmed.json"
    listed = json.loads(marker.read_text())
    listed["files made along with others"].append("../other.txt")
    marker.write_text(json.dumps(listed))
    alone = tmp_path / "alone"
    trim_vocabulary(source, output=alone, keep=[text], progress=Silent())
    before = {file.name for file in alone.iterdir()}
    assert invoke("clean", tmp_path) == 0
    said = capfd.readouterr().out
    assert f"{path}: the trimmed tiny-qwen3, which `quantize --trim` makes again" in said
    assert "mine.md is not bitquilt's, so it stays" in said
    assert invoke("clean", tmp_path, "--yes") == 0
    assert [file.name for file in path.iterdir()] == ["mine.md"]
    assert (tmp_path / "other.txt").exists()
    assert {file.name for file in alone.iterdir()} == before
