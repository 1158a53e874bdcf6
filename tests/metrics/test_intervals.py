"""Means and quantiles against numpy; intervals by known spread and by how often they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.metrics.intervals import (
    FEWEST,
    Documents,
    exponential,
    like_lengths,
    student,
    through,
    too_few,
    wilson,
)


def documents(count: int, tokens: int, strata: int = 1) -> Documents:
    labels = np.repeat(np.arange(count), tokens)
    return Documents.of(labels, labels % strata)


def test_every_domain_has_the_same_weight_whatever_its_size():
    domain = np.repeat([0, 1], [30, 10])
    values = np.where(domain == 0, 1.0, 3.0)
    found = Documents.of(np.arange(40), domain).mean(values)
    assert found.mean == 2.0
    assert (found.low, found.high) == (2.0, 2.0)


def test_many_like_documents_have_the_normal_interval():
    random = np.random.default_rng(0)
    values = random.normal(5.0, 1.0, (400, 1)) + random.normal(0.0, 0.1, (400, 8))
    found = documents(400, 8).mean(values.ravel())
    half = 1.96 * values.mean(1).std(ddof=1) / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_a_ratio_is_of_sums_not_of_means():
    owner = np.repeat(np.arange(6), [3, 3, 3, 4, 4, 4])
    values, sizes = np.arange(21.0), np.arange(21.0) + 1
    found = Documents.of(owner).positive(values, sizes)
    assert found.mean == pytest.approx(values.sum() / sizes.sum())
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_quantiles_are_numpys_and_lie_in_their_interval(share):
    values = np.random.default_rng(0).lognormal(size=(50, 400))
    found = documents(50, 400).quantile(values.ravel(), share)
    expected = np.quantile(values, share, method="inverted_cdf")
    assert found.mean == pytest.approx(expected)
    assert found.low < found.mean < found.high


def test_too_few_documents_have_no_interval():
    found = documents(FEWEST - 1, 100).mean(np.arange(100.0 * (FEWEST - 1)))
    assert found.mean == 50 * (FEWEST - 1) - 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert str(found) == "200 (no interval)"
    assert "[" in str(documents(FEWEST, 100).mean(np.arange(100.0 * FEWEST)))


def test_documents_of_unlike_lengths_count_as_fewer():
    assert like_lengths(np.array([7] * 9)) == pytest.approx(9)
    assert like_lengths(np.array([1000, 1, 1, 1, 1, 1])) == pytest.approx(1.0, abs=0.02)
    owner = np.repeat(np.arange(6), [1000, 1, 1, 1, 1, 1])
    found = Documents.of(owner).positive(np.random.default_rng(0).lognormal(size=1005))
    assert math.isnan(found.low)


def test_what_is_said_of_too_few_documents():
    assert too_few(3) == "too few documents for an interval (3; at least 5 are needed)"
    assert "6, but so unlike each other that they count as fewer than the 5" in too_few(6)


def test_an_end_that_may_be_anything_is_no_interval():
    """Of 32 answers three long ones have nearly all of the loss, up to 520: e^520 is no news."""
    owner = np.repeat(np.arange(32), [30] * 26 + [100] * 3 + [400, 500, 700])
    loss = np.where(owner > 28, 2.0, 0.02) * np.random.default_rng(0).exponential(size=len(owner))
    found = Documents.of(owner).positive(loss)
    assert found.mean == pytest.approx(np.mean(loss))
    assert math.isnan(found.low)
    assert math.isnan(through(found, exponential).high)
    assert Documents.of(owner).positive(np.where(owner % 2, 0.6, 0.5)).high < 0.7


def test_one_domain_without_enough_documents_leaves_all_without_an_interval():
    owner = np.arange(40)
    found = Documents.of(owner, np.where(owner < 37, "prose", "code")).positive(owner + 1.0)
    assert math.isnan(found.low)


values = st.floats(0, 1e6, allow_subnormal=False)
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=14)


@given(st.data(), lengths)
def test_no_interval_holds_what_its_figure_cannot_be(data, sizes):
    """A KL, a loss or a share of any tokens of any documents, a single token among them."""
    of = Documents.of(np.repeat(np.arange(len(sizes)), sizes))
    some = data.draw(st.lists(values, min_size=1, max_size=5))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    figures = random.choice(some, sum(sizes))
    enough = like_lengths(np.array(sizes)) >= FEWEST - 1e-9
    for found, most in (
        (of.positive(figures), math.inf),
        (of.positive(figures, random.uniform(0.5, 8.0, sum(sizes))), math.inf),
        (of.share((figures > np.mean(some)).astype(float)), 1.0),
        (through(of.positive(figures), exponential), math.inf),
    ):
        assert math.isnan(found.low) == math.isnan(found.high)
        assert enough or math.isnan(found.low)
        assert 0 <= found.mean <= most
        if not math.isnan(found.low):
            assert 0 <= found.low <= found.mean <= found.high <= most
            assert math.isfinite(found.high)
    middle = of.quantile(figures, 0.9)
    assert math.isnan(middle.low) or 0 <= middle.low <= middle.mean <= middle.high


def test_rounding_below_zero_is_zero():
    """The KL of a token is rounded, to −1e-7 at worst."""
    found = documents(8, 4).positive(np.tile([-1e-7, 0.0], 16))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_documents_without_a_byte_are_no_warning():
    """An answer of an end token alone."""
    sizes = np.repeat([0.0, 0.0, 0.0, 0.0, 3.0, 4.0], 5)
    found = documents(6, 5).positive(np.full(30, 2.0), sizes)
    assert found.mean == pytest.approx(60 / 35)
    assert 0 <= found.low <= found.mean <= found.high


def test_the_interval_of_the_issue():
    """A KL of 0.249 had a low end of 0.00001, bits per byte one of −0.14."""
    random = np.random.default_rng(0)
    kl = 0.249 * np.repeat([0.2, 0.4, 0.5, 0.6, 0.8, 3.5], 100) * random.lognormal(-0.5, 1, 600)
    found = documents(6, 100).positive(kl)
    assert found.low > 0.05
    assert documents(6, 100).mean(kl).low < 0


def test_wilson_as_worked_out_by_hand():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    z = 1.959964
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(hits / count, count, z)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_independent_tokens_has_wilsons_interval():
    """Every document is one token: the error is that of so many trials."""
    hits = np.arange(400) < 392
    found = Documents.of(np.arange(400)).share(hits.astype(float))
    alone = wilson(0.98, 400, 1.96)
    assert found.low == pytest.approx(alone.low, abs=0.004)
    assert found.high == pytest.approx(alone.high, abs=0.002)


def test_all_tokens_right_is_not_certainty():
    found = documents(8, 50).share(np.ones(400))
    assert found.high == 1.0
    assert 0.98 < found.low < 1.0


def test_powers_of_e_have_an_end():
    assert exponential(1.0) == math.e
    assert exponential(1e4) == pytest.approx(1.797e308, rel=1e-2)
    assert math.isnan(exponential(math.nan))


def test_an_increasing_function_of_an_estimate():
    found = through(documents(20, 3).mean(np.arange(60.0) / 60), math.exp)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(math.exp(np.arange(60).mean() / 60))


@pytest.mark.parametrize(
    ("freedom", "level", "tabled"),
    [(4, 0.95, 2.776), (10, 0.95, 2.228), (30, 0.99, 2.750), (100, 0.95, 1.984)],
)
def test_students_t_as_in_tables(freedom, level, tabled):
    assert student(level, freedom) == pytest.approx(tabled, rel=0.005)


@pytest.mark.parametrize("count", [8, 13, 40])
def test_intervals_cover_a_known_mean_as_often_as_they_say(count):
    """Skewed document means, as KL has: 95 % of intervals are to hold the truth.

    A percentile interval covers 84 % here with eight documents, so this can fail. Neither end may
    miss all the time: the interval of a skewed mean is not symmetric.
    """
    random = np.random.default_rng(count)
    owner = documents(count, 40)
    missed = np.zeros(2)
    for _ in range(300):
        level = random.lognormal(-0.125, 0.5, (count, 1))
        found = owner.positive((level * random.lognormal(-0.5, 1.0, (count, 40))).ravel())
        missed += found.low > 1.0, found.high < 1.0
    assert 0.01 <= missed.sum() / 300 <= 0.09
    assert missed.max() / 300 <= 0.07


@pytest.mark.parametrize(("count", "share"), [(6, 0.8), (13, 0.98), (40, 0.98)])
def test_intervals_cover_a_known_share(count, share):
    """Documents agree to unlike shares of their tokens: 0.05 apart at 0.8."""
    random = np.random.default_rng(count)
    hits = 0
    for _ in range(300):
        own = random.beta(60 * share, 60 * (1 - share), (count, 1))
        found = documents(count, 100).share((random.random((count, 100)) < own).ravel() * 1.0)
        hits += found.low <= share <= found.high
    assert 0.91 <= hits / 300 <= 0.995


def test_intervals_cover_where_lengths_differ():
    """As windows of one text do, of which a third may be of one document."""
    random = np.random.default_rng(1)
    hits = tried = 0
    while tried < 300:
        sizes = (5 + 40 * random.lognormal(0, 0.8, 16)).astype(int)
        owner = np.repeat(np.arange(16), sizes)
        level = random.lognormal(-0.18, 0.6, 16)[owner]
        found = Documents.of(owner).positive(level * random.lognormal(-0.5, 1.0, len(owner)))
        tried += not math.isnan(found.low)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / tried <= 0.99


def test_what_few_tokens_exceed_has_no_interval():
    """Of 800 tokens the largest may be below what one in a thousand exceeds."""
    few = np.random.default_rng(0).lognormal(size=(40, 20))
    assert math.isnan(documents(40, 20).quantile(few.ravel(), 0.999).low)
    assert not math.isnan(documents(40, 20).quantile(few.ravel(), 0.9).low)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_intervals_cover_a_known_quantile(share):
    random = np.random.default_rng(0)
    owner = documents(30, 100)
    truth = np.quantile(random.lognormal(size=200_000) * random.lognormal(0, 0.5, 200_000), share)
    hits = 0
    for _ in range(200):
        values = random.lognormal(size=(30, 100)) * random.lognormal(0, 0.5, (30, 1))
        found = owner.quantile(values.ravel(), share)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 0.995
