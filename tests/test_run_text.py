"""Which text each stage of a run reads."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bitquilt import QuantizeConfig, SearchConfig, run_text
from bitquilt.calibration.corpus import Document
from tests.quick import QUICK

RACE = SearchConfig()
BUDGET = QUICK["text_budget"]
TOKEN = {"code": 1, "prose": 2, "law": 3, "recipes": 4, "notes": 5}


def documents(*domains: str) -> list[Document]:
    return [Document(d, f"{d}{n}", "x" * 400, None) for d in domains for n in range(6)]


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draw the text of a run; what is searched on is of recipes, what is held out of law too."""
    kept = {"held-out": documents("code", "law"), "search": documents("recipes")}
    monkeypatch.setattr(run_text, "encoder", lambda _: lambda d: [TOKEN[d.domain]] * 400)
    monkeypatch.setattr(run_text, "held_out_documents", lambda _: kept["held-out"])
    monkeypatch.setattr(run_text, "search_documents", lambda _: kept["search"])

    def draw_it(calibration, search=RACE, *, users=False):
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps({"text": "x"}))
        config = QuantizeConfig(bits=4, calibration=path if users else None)
        said = []
        drawn = run_text.draw_text(
            SimpleNamespace(), calibration, config, search, BUDGET, said.append
        )
        return drawn, said

    return draw_it


def domains(tokens) -> list[int]:
    return tokens.unique().tolist()


def test_types_are_chosen_on_domains_that_nothing_was_calibrated_on(draw):
    text, said = draw(documents("code", "prose"))
    assert domains(text.calibration) == [1, 2]
    assert domains(text.allocation.search) == domains(text.allocation.selection) == [4]
    assert len(text.allocation.search) == BUDGET.search
    assert len(text.allocation.interactions) == BUDGET.interactions
    assert len(text.allocation.selection) == BUDGET.selection
    assert text.closing.unlike == BUDGET.held_out
    assert domains(text.closing.tokens) == [1, 3]
    assert said == []


def test_half_of_it_is_a_users_own_calibration_text(draw):
    text, said = draw(documents("notes"), users=True)
    for tokens in (text.allocation.search, text.allocation.selection):
        assert (tokens[:, 0] == 5).sum() == len(tokens) / 2
        assert domains(tokens) == [4, 5]
    assert domains(text.closing.tokens) == [1, 3]
    assert text.closing.unlike == len(text.closing.tokens)
    assert said == ["files are not measured on text like the calibration text: there is none of it"]


def test_where_nothing_is_chosen_nothing_is_read_for_it(draw):
    text, _ = draw(documents("code"), None)
    assert [len(one) for one in vars(text.allocation).values()] == [0, 0, 0]


def test_where_there_is_little_text_to_search_on_it_is_what_the_rounding_reads(draw, monkeypatch):
    monkeypatch.setattr(run_text, "search_documents", lambda _: documents("recipes")[:3])
    text, said = draw(documents("code"), SearchConfig(method="evopress"))
    assert domains(text.allocation.search) == [1]
    assert any("the search reads the same text as the rounding" in line for line in said)
    assert domains(text.allocation.selection) == [4]
