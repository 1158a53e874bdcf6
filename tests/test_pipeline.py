"""What ``quantize`` writes: the planned bytes, the asked size, a recipe that makes it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

import bitquilt
from bitquilt import EngineMissingError, Output, SearchConfig, Silent, pipeline
from bitquilt.allocation.plan import plan
from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header
from bitquilt.rounding import ROUNDING_VERSION
from bitquilt.targets import GGUF, MLX
from tests.factories import tiny_checkpoint
from tests.progress import Recorded
from tests.quick import QUICK, invoke

READERS = {"gguf": GGUF.read_weights, "mlx": MLX.read_weights}


def quantize(source: Path, **options: object) -> list[Output]:
    """The outputs of a quick run."""
    return pipeline.quantize(source, **QUICK | options).outputs


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model that every type fits, and the work directory of all runs on it."""
    place = tmp_path_factory.mktemp("wide")
    return tiny_checkpoint(place, layers=1), place / "work"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Rows of 576, a head of its own."""
    place = tmp_path_factory.mktemp("narrow")
    shape = {"hidden": 576, "intermediate": 640, "tied": False}
    return tiny_checkpoint(place, "llama", layers=1, **shape), place / "work"


def size_on_disk(path: Path) -> int:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def tensor_bytes(path: Path) -> int:
    """Count the data of all tensors, as other programs read them."""
    if path.is_dir():
        tensors = load_file(path / "model.safetensors").values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


def recipe_file(path: Path) -> Path:
    return path / "recipe.json" if path.is_dir() else path.with_suffix(".recipe.json")


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {"" if file == path else file.name: file.read_bytes() for file in files}


MIX = {
    "default": {"gguf": "Q4_K", "mlx": "4bit-g64"},
    "rules": [{"match": "attn_v|ffn_down", "type": {"gguf": "Q6_K", "mlx": "6bit-g32"}}],
    "pin": {"token_embd": {"gguf": "Q8_0", "mlx": "BF16"}},
}
PINS = {"pin": {"token_embd": {"gguf": "Q8_0", "mlx": "8bit-g64"}}}


@pytest.mark.parametrize(
    ("model", "to", "asked", "recipe"),
    [
        ("wide", "both", {"bits": 4.5}, None),
        ("wide", "both", {"size": "620 kB"}, PINS),
        ("wide", "both", {}, MIX),
        ("wide", "gguf", {"recipe": "Q3_K_M"}, None),
        ("narrow", "both", {"bits": 5.3}, None),
        ("narrow", "mlx", {"recipe": "mixed_3_6"}, None),
    ],
    ids=["bits", "size with pins", "recipe", "preset", "narrow bits", "narrow preset"],
)
def test_what_is_planned_is_on_disk(request, tmp_path, model, to, asked, recipe):
    source, work = request.getfixturevalue(model)
    if recipe is not None:
        (tmp_path / "mine.json").write_text(json.dumps(recipe))
        asked = asked | {"recipe": tmp_path / "mine.json"}
    plans = plan(source, to=to, **asked)
    made = quantize(source, to=to, output=tmp_path, work_dir=work, **asked)
    for planned, output in zip(plans, made, strict=True):
        assert size_on_disk(output.path) == planned.layout.total_bytes == output.nbytes
        weights = READERS[output.target](output.path)
        count = sum(weights[name].numel() for name in weights)
        assert output.bits_on_disk == planned.bits_on_disk == output.nbytes * 8 / count
        assert output.bits == tensor_bytes(output.path) * 8 / count
        if planned.space is None:
            assert output.allocation == planned.allocation
    if "bits" in asked:
        # the seven matrices of one tiny block come in large steps
        assert all(0.98 * asked["bits"] <= planned.bits <= asked["bits"] for planned in plans)
        assert all(output.bits <= asked["bits"] for output in made)
    if "size" in asked:
        for output in made:
            assert 0.995 * 620_000 <= output.nbytes <= 620_000
            assert output.allocation["model.embed_tokens"] in ("Q8_0", "8bit-g64")


@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_the_recipe_beside_a_model_makes_the_same_weights(wide, tmp_path, to):
    """From nothing: a matrix does not depend on which others were rounded with it."""
    source, work = wide
    (first,) = quantize(source, bits=4.5, to=to, output=tmp_path / "first", work_dir=work)
    recipe = recipe_file(first.path)
    (second,) = quantize(
        source, recipe=recipe, to=to, output=tmp_path / "second", work_dir=tmp_path / "work"
    )
    ours, theirs = (READERS[to](output.path) for output in (first, second))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert recipe_file(second.path).read_bytes() == recipe.read_bytes()
    if to == "gguf":
        inside = read_header(first.path).metadata["bitquilt.recipe"]
        assert json.loads(inside) == json.loads(recipe.read_text())


def test_other_budgets_and_targets_share_the_work(wide, tmp_path):
    source, work = wide
    quantize(source, bits=4.5, to="gguf", output=tmp_path, work_dir=work)
    captured = (work / "gradients.safetensors").stat().st_mtime_ns
    quantize(source, bits=6, to="mlx", output=tmp_path, work_dir=work)
    assert (work / "gradients.safetensors").stat().st_mtime_ns == captured
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "tiny-llama4_text-4.5bit.gguf",
        "tiny-llama4_text-4.5bit.recipe.json",
        "tiny-llama4_text-6bit-mlx",
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_the_matrices_of_a_large_model_stay_only_if_asked(wide, tmp_path, monkeypatch, keep):
    monkeypatch.setattr("bitquilt.forecast.work.ESTIMATED_FROM", 0)
    asked = {"bits": 4.5, "to": "gguf", "output": tmp_path, "work_dir": tmp_path / "work"}
    asked |= {"search": SearchConfig(method="knapsack"), "keep_work": keep}
    (made,) = quantize(wide[0], **asked)
    there = {path.name for path in (tmp_path / "work").iterdir()}
    assert {"estimated", "gradients.safetensors", "settings.json"} < there
    assert ("polished" in there) == keep
    (again,) = quantize(wide[0], **asked)
    assert again.allocation == made.allocation


class Watched(Silent):
    """Keeps the most bytes that a directory has at any advance or end of a stage."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place, self.most = place, 0

    def look(self) -> None:
        self.most = max(self.most, size_on_disk(self.place))

    def advance(self, units: float = 1) -> None:
        self.look()
        super().advance(units)

    @contextmanager
    def stage(self, title: str, total: float, kind: str = "") -> Iterator[None]:
        with super().stage(title, total, kind):
            yield
            self.look()


def test_candidates_of_a_large_model_go_before_those_of_the_next_format(tmp_path, monkeypatch):
    monkeypatch.setattr("bitquilt.forecast.work.ESTIMATED_FROM", 0)
    monkeypatch.setattr("bitquilt.forecast.disk.SPARE", 0)
    source = tiny_checkpoint(tmp_path, layers=1)
    most, files = {}, {}
    for keep in (True, False):
        place = tmp_path / f"{keep}"
        asked = QUICK | {"bits": 4.5, "to": "both", "keep_work": keep, "output": place}
        forecast = bitquilt.estimate(source, **asked)
        watched = Watched(place / "tiny-llama4_text.work")
        made = pipeline.quantize(source, **asked, progress=watched)
        assert watched.most == pytest.approx(forecast.disk.work_bytes, rel=0.15)
        most[keep] = watched.most
        files[keep] = {output.target: contents(output.path) for output in made.outputs}
        bank = {path.name for path in watched.place.iterdir()} & {"rounded", "polished"}
        assert bank == ({"rounded", "polished"} if keep else set())
    assert files[True] == files[False]
    assert most[False] < 0.8 * most[True]
    left = bitquilt.estimate(source, **asked)  # what was decided is rounded, and that alone
    assert not {stage.kind for stage in left.stages} & {"search", "interactions", "selection"}
    assert 0 < left.disk.work_bytes < 0.5 * forecast.disk.work_bytes


def test_an_earlier_result_is_replaced(wide, tmp_path):
    source, work = wide
    asked = {"recipe": "4bit-g64", "to": "mlx", "output": tmp_path, "work_dir": work}
    (first,) = quantize(source, **asked)
    (first.path / "stray").write_text("")
    before = contents(first.path)
    quantize(source, **asked)
    assert contents(first.path) == {name: raw for name, raw in before.items() if name != "stray"}


@pytest.mark.parametrize(
    ("to", "preset", "engine"), [("gguf", "Q8_0", "llama.cpp"), ("mlx", "8bit-g64", "mlx-lm")]
)
def test_the_engine_is_asked(wide, tmp_path, to, preset, engine):
    if to == "mlx":
        pytest.importorskip("mlx_lm")
    source, work = wide
    asked = QUICK | {"recipe": preset, "to": to, "output": tmp_path, "work_dir": work}
    made = pipeline.quantize(source, **asked | {"engine_check": True})
    (output,) = made.outputs
    assert output.engine is not None
    assert output.engine.in_engine.engine == engine
    assert output.engine.in_engine.kl.mean < 0.1
    assert "same tokens" in output.note
    assert json.loads(json.dumps(made.to_dict()))["outputs"][0]["path"] == str(output.path)


@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_refined_and_tuned_files_are_ordinary_and_closer(wide, tmp_path, to):
    source, work = wide
    text = replace(QUICK["text_budget"], held_out=16)
    asked = {"bits": 4.5, "to": to, "work_dir": work, "text_budget": text}
    (plain,) = quantize(source, output=tmp_path / "plain", **asked)
    (better,) = quantize(source, output=tmp_path / "better", sequential=True, tune=True, **asked)
    assert better.nbytes == plain.nbytes
    assert better.allocation == plain.allocation
    ours, theirs = (READERS[to](output.path) for output in (plain, better))
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert better.figures.headline.kl.mean < 1.1 * plain.figures.headline.kl.mean


def test_a_small_model_on_a_recipe_is_corrected_and_its_recipe_says_so(wide, tmp_path):
    source, work = wide
    asked = {"to": "gguf", "work_dir": work}
    (plain,) = quantize(
        source, recipe="Q4_K_M", output=tmp_path / "plain", sequential=False, **asked
    )
    (unasked,) = quantize(source, recipe="Q4_K_M", output=tmp_path / "unasked", **asked)
    assert plain.allocation == unasked.allocation
    weights = [READERS["gguf"](one.path) for one in (plain, unasked)]
    assert any(not torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    for made, own, said in zip((plain, unasked), weights, (False, True), strict=True):
        recipe = recipe_file(made.path)
        assert json.loads(recipe.read_text())["sequential"] is said
        (again,) = quantize(source, recipe=recipe, output=tmp_path / f"again-{said}", **asked)
        theirs = READERS["gguf"](again.path)
        assert all(torch.equal(weight, theirs[name]) for name, weight in own.items())


def test_an_unknown_rounding_is_refused(wide, tmp_path):
    source, _ = wide
    with pytest.raises(UserError, match=r"rounding is 'bset', which is not one of nearest, gptq, "):
        quantize(source, bits=4.5, output=tmp_path, rounding="bset")


def test_a_work_directory_of_another_rounding_is_refused(wide, tmp_path):
    source, work = wide
    differs = f"rounding: full, {ROUNDING_VERSION} there, gptq, {ROUNDING_VERSION} now"
    with pytest.raises(UserError, match=differs):
        quantize(source, bits=4.5, output=tmp_path, work_dir=work, rounding="gptq")


def test_too_little_text_is_refused_before_the_work(wide, tmp_path, monkeypatch):
    """More windows are learned from than are calibrated on; a short text has none for them."""

    def begun(*_):
        raise AssertionError("the long work had begun")

    monkeypatch.setattr(pipeline, "collect_statistics", begun)
    source, _ = wide
    text = replace(QUICK["text_budget"], tuning=5000)
    with pytest.raises(UserError, match="give more text"):
        quantize(source, bits=4.5, output=tmp_path, text_budget=text, tune=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_is_kept_is_that_of_the_config(wide, tmp_path):
    source, work = wide
    quantize(source, recipe="Q4_K_M", output=tmp_path, work_dir=work)
    kept = json.loads((work / "made" / "tiny-llama4_text-Q4_K_M.gguf.json").read_text())["command"]
    words = shlex.split(kept)
    assert words[:5] == ["bitquilt", "quantize", str(source), "--recipe", "Q4_K_M"]
    assert words[words.index("--work-dir") + 1] == str(work)


def test_where_a_race_takes_too_long_scores_are_corrected_all_the_same(wide, tmp_path):
    source, _ = wide
    budget = replace(QUICK["text_budget"], races=0)
    config = pipeline.QuantizeConfig(**QUICK | {"text_budget": budget, "bits": 4.5})
    run = pipeline.Run(source, config, Silent())
    assert run.search.method == "knapsack"
    assert len(run.text.allocation.interactions) == budget.interactions


def test_the_card_has_what_quantize_measured(wide, tmp_path, capfd):
    source, _ = wide
    (output,) = quantize(source, recipe="Q4_K_M", output=tmp_path, work_dir=tmp_path / "work")
    capfd.readouterr()
    assert invoke("card", output.path, "--against", source, "--repo", "me/tiny-GGUF") == 0
    card = capfd.readouterr().out
    first, second = card[card.index(f"| `{output.path.name}`") :].splitlines()[:2]
    unlike, like = output.figures.kinds.values()
    assert f"| on unlike text | {unlike.kl.mean:.3g} [" in first
    assert f"| on like text | {like.kl.mean:.3g} [" in second
    assert "not measured" not in card


def test_a_preset_does_not_speak_of_a_search(wide, tmp_path, capfd):
    """A machine too slow for a race has nothing to say about it where nothing is searched."""
    source, work = wide
    slow = {"text_budget": replace(QUICK["text_budget"], races=0, search=5000)}
    asked = QUICK | slow | {"recipe": "Q4_K_M", "output": tmp_path, "work_dir": work}
    (output,) = pipeline.quantize(source, **asked).outputs
    said = capfd.readouterr().err
    for word in ("race", "knapsack", "search", "mix", "Measuring matrices"):
        assert word not in said, said
    assert output.source == "Q4_K_M"
    assert output.rankings == ()
    pipeline.quantize(source, **asked | {"recipe": None, "bits": 4.5})
    said = capfd.readouterr().err
    assert "a race would take long" in said
    assert "4.5bit for gguf, before polishing: the types of " in said


def test_a_file_larger_than_its_quantized_source_is_told(wide, tmp_path, capfd):
    source, work = wide
    made = quantize(source, recipe="Q4_K_M", output=tmp_path, work_dir=work)[0].path
    larger = "tiny-llama4_text-Q8_0.gguf will have [\\d,]+ bytes, and its source tiny-.*Q4_K_M.gguf"
    assert invoke("plan", made, "--recipe", "Q8_0") == 0
    assert re.search(larger, capfd.readouterr().err)
    config = pipeline.QuantizeConfig(**QUICK, recipe="Q8_0", output=tmp_path)
    lines = []
    pipeline.Run(made, config, Recorded(lines=lines))
    assert any(re.match(larger, line) for line in lines)
    assert any(
        "source is quantized already" in line or "already quantized (" in line for line in lines
    )
    for smaller in (["--recipe", "Q3_K_M"], ["--bits", "3.5"]):
        assert invoke("plan", made, *smaller) == 0
        assert "its source" not in capfd.readouterr().err
    assert invoke("plan", source, "--recipe", "Q8_0") == 0  # a source that has lost nothing
    assert "its source" not in capfd.readouterr().err


def test_a_file_is_not_filled_where_more_bytes_bring_nothing(wide, tmp_path):
    """On the types that a quantized source has already nothing is lost."""
    source, work = wide
    made = quantize(source, recipe="Q4_K_M", output=tmp_path, work_dir=work)[0]
    lines = []
    (again,) = quantize(
        made.path,
        bits=7,
        output=tmp_path / "again",
        search=pipeline.SearchConfig(method="knapsack"),
        progress=Recorded(lines=lines),
    )
    (planned,) = plan(made.path, bits=7)
    assert again.nbytes == size_on_disk(again.path) < 0.98 * planned.layout.total_bytes
    assert any("asked for is better, so the file is smaller" in line for line in lines)


@pytest.mark.parametrize("option", ["output", "work_dir"])
def test_a_file_where_a_directory_belongs_is_refused_before_anything_is_said(
    wide, tmp_path, option
):
    source, _ = wide
    (tmp_path / "mine").write_text("mine")
    lines = []
    with pytest.raises(UserError, match=f"mine is a file, not a directory.*{option}"):
        quantize(
            source,
            **{"output": tmp_path, option: tmp_path / "mine"},
            recipe="Q4_K_M",
            progress=Recorded(lines=lines),
        )
    assert not lines
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failing_check_says_the_files_own_name(wide, tmp_path, monkeypatch):
    """The file has another name while it is checked; what is said has its own."""

    def missing(path, *_):
        raise EngineMissingError(f"{path} runs in an engine that is not there")

    monkeypatch.setattr(pipeline, "run_in_engine", missing)
    source, work = wide
    asked = QUICK | {"recipe": "Q4_K_M", "output": tmp_path, "work_dir": work}
    with pytest.raises(EngineMissingError, match=r"Q4_K_M\.gguf runs in") as why:
        pipeline.quantize(source, **asked | {"engine_check": True})
    assert ".part" not in str(why.value)
