"""What ships is the best of search, knapsack and preset, by text that neither of them read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors

from bitquilt import PlanConfig, SearchConfig, Silent, pipeline
from bitquilt.allocation.allocate import affordable_search
from bitquilt.allocation.evaluator import Evaluator
from bitquilt.allocation.plan import largest_preset, make_plan, requests
from bitquilt.allocation.selection import select_best
from bitquilt.forecast import work
from bitquilt.models import open_checkpoint
from bitquilt.rounding.layer_bank import POLISHED, ROUNDED
from bitquilt.targets import GGUF
from tests.factories import tiny_checkpoint
from tests.progress import Kinds, Recorded
from tests.quick import QUICK, SEARCH, invoke


def planned(checkpoint, **options):
    (request,) = requests(PlanConfig(**options))
    return make_plan(checkpoint, request, GGUF)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    return tiny_checkpoint(place, layers=1), place / "work"


@pytest.mark.parametrize("better", ["race", "knapsack", "Q4_K_S"])
def test_the_best_on_unread_text_is_used(monkeypatch, better):
    level = {"race": 1.1, "knapsack": 1.2, "Q4_K_S": 1.3} | {better: 1.0}
    standing = {name: {"m": name} for name in level}

    def evaluator(teacher, mixes, windows):
        noise = np.random.default_rng(0).random((len(windows), 64), np.float32)
        return np.array([level[mix["m"]] + noise for mix in mixes])

    rankings = select_best(standing, evaluator, lambda _: None, 4, Silent())
    assert rankings[0].name == better
    assert len(rankings) == 3


@pytest.mark.parametrize(("behind", "expected"), [(0.1, 4), (1e-5, 40)])
def test_no_more_is_read_than_it_takes(behind, expected):
    standing = {"race": {"m": 0.0}, "knapsack": {"m": behind}}
    read = []

    def teacher(windows):
        read.extend(windows)
        return windows

    def evaluator(part, mixes, windows):
        assert list(windows) == list(range(len(part)))
        noise = np.random.default_rng(part).random((len(mixes), len(part), 64), np.float32)
        return noise + np.array([mix["m"] for mix in mixes]).reshape(-1, 1, 1)

    select_best(standing, evaluator, teacher, 40, Recorded(steps := []))
    assert sum(steps) == expected
    assert read == list(range(expected))


@pytest.mark.parametrize("preset", ["Q3_K_M", "Q4_K_M"])
def test_a_budget_of_a_presets_bytes_is_measured_against_it(model, preset):
    checkpoint = open_checkpoint(model[0])
    nbytes = planned(checkpoint, recipe=preset).layout.total_bytes
    plan = planned(checkpoint, size=f"{nbytes}B")
    (rival,) = largest_preset(plan, checkpoint).values()
    assert GGUF.plan(checkpoint, rival).total_bytes == nbytes


def test_pins_hold_for_the_preset_too(model, tmp_path):
    pins = tmp_path / "pins.json"
    pins.write_text('{"pin": {"blk.0.attn_v": "Q8_0"}}')
    plan = planned(open_checkpoint(model[0]), bits=6.0, recipe=pins)
    (rival,) = largest_preset(plan, open_checkpoint(model[0])).values()
    assert rival["model.layers.0.self_attn.v_proj"] == "Q8_0"


def test_below_every_preset_there_is_no_rival(model):
    checkpoint = open_checkpoint(model[0])
    small = SimpleNamespace(candidate_sets={}, capacity=1000)
    plan = SimpleNamespace(target=GGUF, space=small)
    assert largest_preset(plan, checkpoint) == {}


def test_several_budgets_make_several_recipes(model, tmp_path, capfd):
    source, work = model
    asked = ["--bits", "4,5", "--to", "both", "-o", tmp_path, "--work-dir", work, "--json"]
    assert invoke("search", source, *asked) == 0
    found = json.loads(capfd.readouterr().out)["recipes"]
    assert [round(one["bits"]) for one in found] == [4, 4, 5, 5]
    assert [one["target"] for one in found] == 2 * ["gguf", "mlx"]
    assert all(one["rankings"][0]["name"] == one["source"] for one in found)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4
    assert "tiny-llama4_text-5bit-gguf.recipe.json" in names


def test_what_was_selected_is_not_selected_again(model, tmp_path):
    source, work = model
    found, kinds = [], []
    for name in ("once", "again"):
        asked = SEARCH | {"bits": 4.7, "output": tmp_path / name, "work_dir": work}
        progress = Kinds()
        found += pipeline.search(source, **asked, progress=progress)
        kinds.append(progress.kinds)
    assert "selection" in kinds[0]
    assert "selection" not in kinds[1]
    assert found[0].rankings == found[1].rankings
    assert all(one.nbytes is not None and one.nbytes > 0 for one in found[1].rankings)
    assert found[0].source == found[1].source


def test_where_no_preset_fits_there_is_nothing_to_select(model, tmp_path):
    source, work = model
    progress = Kinds()
    asked = SEARCH | {"bits": 2.5, "output": tmp_path, "work_dir": work}
    knapsack = SearchConfig(method="knapsack")
    (found,) = pipeline.search(source, **asked, search=knapsack, progress=progress)
    assert "selection" not in progress.kinds
    assert found.rankings == ()
    assert found.source == "knapsack"
    assert any("no preset is small enough to stand beside them" in one for one in progress.lines)


def test_a_search_says_what_it_found_on_which_text(model, tmp_path, capfd):
    source, work = model
    assert invoke("search", source, "--bits", "4.5", "-o", tmp_path, "--work-dir", work) == 0
    printed = capfd.readouterr()
    number = r"[\d.e-]+"
    assert re.search(
        r"\.recipe\.json: the types of (the )?\w+, for a file of [\d,]+ bytes; their selection KL "
        rf"is {number} nats/token on 62 tokens that the search has not read\n",
        printed.out,
    )
    assert re.search(
        r"4\.5bit for gguf, before polishing: the types of (the )?\w+ are used: on 62 tokens "
        rf"that the search has not read, their selection KL is {number} nats/token; ",
        printed.err,
    )


def test_options_of_a_search_beside_a_recipe_are_said_to_have_no_effect(model, tmp_path):
    asked = QUICK | {"recipe": "Q4_K_M", "output": tmp_path}
    for search, expected in ((SearchConfig(tokens=5000), 1), (SearchConfig(), 0)):
        lines = []
        config = pipeline.QuantizeConfig(**asked, search=search)
        pipeline.Run(model[0], config, Recorded(lines=lines))
        assert sum("leaves nothing to search" in line for line in lines) == expected


def test_a_recipe_found_has_the_types_that_quantize_finds(model, tmp_path):
    source, work = model
    (found,) = pipeline.search(source, **SEARCH, bits=4.5, output=tmp_path, work_dir=work)
    direct, by_recipe = (
        pipeline.quantize(source, **QUICK, output=tmp_path, work_dir=work, **asked).outputs[0]
        for asked in ({"bits": 4.5}, {"recipe": found.path})
    )
    assert direct.source == found.source
    assert direct.allocation == by_recipe.allocation
    assert by_recipe.source == "recipe"


def test_measured_scores_and_other_methods(model, tmp_path):
    source, work = model
    for config in (
        SearchConfig(method="knapsack", scores="measured"),
        SearchConfig(method="evopress", tokens=2000),
        SearchConfig(tokens=0),
    ):
        asked = SEARCH | {"bits": 4.5, "output": tmp_path, "work_dir": work}
        (found,) = pipeline.search(source, **asked, search=config)
        assert found.path.exists()
        assert any(ranking.name == config.method for ranking in found.rankings)


def test_of_a_large_model_only_what_is_chosen_is_rounded(model, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(work, "ESTIMATED_FROM", 0)
    asked = {"output": tmp_path, "bits": 4.7, "search": SearchConfig(method="knapsack")}
    progress = Kinds()
    made = pipeline.quantize(model[0], **QUICK, **asked, keep_work=True, progress=progress)
    (found,) = made.outputs
    assert (found.source, found.rankings) == ("knapsack", ())
    assert "selection" not in progress.kinds
    number = r"[\d.e-]+"
    said = r"4\.7bit for gguf: the types of the knapsack are used: they are predicted to cost "
    said += rf"{number} nats/token, those of Q\w+ {number}"
    assert any(re.fullmatch(said, line) for line in progress.lines)
    rounded = set()
    for folder in (ROUNDED, POLISHED):
        for file in (made.work_dir / folder).rglob("*.safetensors"):
            with safetensors.safe_open(file, framework="pt") as handle:
                rounded |= set(handle.metadata())
    assert rounded == {f"{module}/{qtype}" for module, qtype in found.allocation.items()}
    assert invoke("search", model[0], "--bits", "4.7", "--search", "knapsack", "-o", tmp_path) == 0
    assert re.search(
        r"the types of the knapsack, for a file of [\d,]+ bytes\n", capfd.readouterr().out
    )


def test_limits():
    budget = QUICK["text_budget"]
    tokens = budget.races * budget.window
    slow = replace(budget, races=0)

    def tokens_of(config, budget=budget):
        return affordable_search(config, budget).tokens

    assert tokens_of(SearchConfig()) == tokens
    assert tokens_of(SearchConfig(tokens=0)) == 0
    assert tokens_of(SearchConfig(tokens=7), slow) == 7
    assert tokens_of(SearchConfig(method="evopress")) is None
    assert affordable_search(SearchConfig(), slow).method == "knapsack"


def test_a_preset_alone_leaves_nothing_to_search(model, tmp_path, capfd):
    assert invoke("search", model[0], "--recipe", "Q4_K_M", "-o", tmp_path) == 2
    assert "Q4_K_M alone leaves nothing to search; give --bits" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("noise", "precision"), [(0.04, "medium"), (231.2, "highest")])
def test_products_that_compute_something_else_are_given_up(
    model, tmp_path, monkeypatch, noise, precision
):
    """Seen: bfloat16 on one machine moved KL by 23,120 %, and the search went on with it."""
    source, _ = model
    used, lines = [], []
    measure = Evaluator.__call__

    def watched(self, *asked):
        used.append(self.precision)
        return measure(self, *asked)

    monkeypatch.setattr("bitquilt.allocation.evaluator.fast_precision", lambda _: "medium")
    monkeypatch.setattr(Evaluator, "noise", lambda *_: noise)
    monkeypatch.setattr(Evaluator, "__call__", watched)
    pipeline.search(source, bits=3.7, output=tmp_path, progress=Recorded(lines=lines), **SEARCH)
    assert set(used) == {precision}
    (line,) = (line for line in lines if "bfloat16" in line)
    assert line.startswith("The search multiplies matrices in float32") == (precision == "highest")
