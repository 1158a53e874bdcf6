"""The kinds of text of an evaluation, told apart by the domains of the calibration text."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.evaluation.figures import Measured, by_domain, domains_of


def measured(**kl_of_domain: float) -> Measured:
    """Five documents of twenty tokens of each domain, each token with the domain's KL."""
    domain = np.repeat(list(kl_of_domain), 100)
    kl = np.repeat(np.array(list(kl_of_domain.values()), np.float32), 100)
    ones = np.ones_like(kl)
    return Measured(
        kl=kl,
        agreement=ones,
        flips=ones,
        loss=ones,
        excess=ones,
        nbytes=ones,
        entropy=ones,
        document=np.arange(len(kl)) // 20,
        domain=domain,
    )


TEXT = measured(code=1.0, law=8.0, prose=3.0)


def test_both_kinds_come_first_then_every_domain():
    found = by_domain([TEXT], {"code", "prose"})
    assert list(found) == ["unlike", "like", "code", "law", "prose"]
    assert found["unlike"].kl.mean == 8.0
    assert found["like"].kl.mean == pytest.approx(2.0)
    assert found["like"].documents == 10


@pytest.mark.parametrize(
    ("calibrated", "kinds"),
    [({"code", "law", "prose"}, ["like"]), ({"text"}, ["unlike"]), (None, ["all"])],
)
def test_text_of_one_kind(calibrated, kinds):
    found = by_domain([TEXT], calibrated)
    assert list(found) == [*kinds, "code", "law", "prose"]
    assert found[kinds[0]].kl.mean == pytest.approx(4.0)


def test_a_kind_of_few_documents_in_each_of_its_domains_has_an_interval():
    """Documents are drawn from all of them at once: no domain has five here."""
    kept = TEXT.document % 5 < 3
    found = by_domain([TEXT.where(kept)], {"code", "prose"})
    assert np.isnan(found["code"].kl.low)
    assert found["like"].kl.low < found["like"].kl.mean < found["like"].kl.high


def test_what_is_a_domain():
    names = ["unlike", "like", "all", "code", "traces", "traces, uncertain", "answers"]
    assert domains_of(names) == ["code"]
