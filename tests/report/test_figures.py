"""Figures as people read them: what has too few documents for an interval says so."""

from __future__ import annotations

import math
from dataclasses import replace

from bitquilt.metrics.kl import Estimate
from bitquilt.report.figures import figure_text, lacks_documents, number
from tests.report.conftest import figures


def unknown(documents):
    """Figures of so many documents, without intervals."""
    found = figures(0.249)
    return replace(found, documents=documents, kl=Estimate(0.249, math.nan, math.nan))


def test_a_figure_without_an_interval_says_so():
    assert str(figure_text(Estimate(0.249, math.nan, math.nan), "kl")) == "0.249 [no interval]"
    assert str(figure_text(Estimate(0.249, 0.1, 0.6), "kl")) == "0.249 [0.1 – 0.6]"


def test_domains_with_too_few_documents_are_named_with_what_would_be_enough():
    found = {"all": unknown(43), "code": unknown(3), "prose": figures(0.2)}
    said = lacks_documents(found)
    assert said.startswith(
        "Some figures have no interval: code: too few documents for an interval (3; at least 5 are "
        "needed); an interval over all domains needs one in each domain."
    )
    assert "all:" not in said
    assert "prose" not in said
    # three of code have to become five, and 10,000 tokens of each tell the 99.9 %
    tokens = sum(found[name].tokens for name in ("code", "prose"))
    rare = max(10_000 / found[name].tokens for name in ("code", "prose"))
    enough = 1024 * math.ceil(max(5 / 3, rare) * tokens / 1024)
    assert f"a larger --tokens (about {enough:,} may be enough)" in said
    assert "--text" in said


def test_many_domains_are_counted_and_not_listed():
    found = {f"domain{n}": unknown(3) for n in range(7)} | {"code": figures(0.2)}
    found |= {"traces": unknown(3), "traces, uncertain": unknown(3)}
    said = lacks_documents(found)
    assert said.startswith(
        "Some figures have no interval: too few documents for an interval in 7 of 8 domains, and "
        "in “traces” and “traces, uncertain”"
    )


def test_a_perplexity_that_nobody_can_read_has_few_digits():
    assert number(26907.3, "perplexity") == "26,907"
    assert number(1.0858e90, "perplexity") == "1.086e+90"


def test_where_all_have_an_interval_nothing_is_said():
    assert lacks_documents({"code": figures(0.2)}) == ""


def test_a_text_of_one_domain():
    assert "text: too few documents" in lacks_documents({"text": unknown(1)})


def test_a_rare_quantile_takes_more_tokens():
    said = lacks_documents({"traces": replace(figures(0.2), tokens=3104)})
    assert (
        "traces: too few tokens for the interval of the 99.9 % KL (3,104; at least 10,000 are"
        in said
    )
    assert "documents for" not in said
    assert "a larger --tokens, and another" in said  # answers are as many as --traces says
