"""llama-perplexity's protocol: its windows, and its formulas written again number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.evaluation.wikitext import (
    CONFIDENCES,
    PROTOCOL_CONTEXT,
    SKIPPED,
    ProtocolText,
    scored_tokens,
    wikitext_figures,
    wikitext_windows,
)
from bitquilt.metrics.teacher import Teacher

F = np.float32
CONTEXT = PROTOCOL_CONTEXT
WINDOWS, WIDTH, VOCABULARY = 3, 24, 61


@pytest.fixture(scope="module")
def logits():
    """A teacher whose logits spread beyond 16 nats, and a student near it [N, L, V]."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(WINDOWS, CONTEXT, WIDTH, generator=draw)
    hidden *= torch.rand(WINDOWS, CONTEXT, 1, generator=draw) * 2
    head = torch.randn(VOCABULARY, WIDTH, generator=draw)
    likely = (hidden @ head.T).softmax(-1)
    tokens = torch.zeros(WINDOWS, CONTEXT, dtype=torch.int64)
    for window, p in zip(tokens, likely, strict=True):
        window[1:] = torch.multinomial(p[:-1], 1, generator=draw)[:, 0]
    noise = torch.randn(WINDOWS, CONTEXT, VOCABULARY, generator=draw)
    return Teacher(tokens, hidden, head), hidden @ head.T + 0.2 * noise


def as_the_tool(tokens, base, own):
    """perplexity.cpp's loops over windows, tokens and the vocabulary, in its precisions.

    Returns:
        KL, loss, original loss, Δp, same top, largest p of the original: lists over tokens.
    """
    found = []
    for window, of_base, of_own in zip(tokens.tolist(), base.numpy(), own.numpy(), strict=True):
        for place in range(CONTEXT // 2, CONTEXT - 1):
            token = window[place + 1]
            codes, scale, lowest = stored(of_base[place])
            found.append(compared(codes, scale, lowest, of_own[place], token))
    return list(zip(*found, strict=True))


def stored(logits):
    """What --kl-divergence-base writes of a token: codes of 16 bits, their step and their zero."""
    high = max(logits)
    low = max(min(logits), F(high - F(16)))
    total = sum(float(np.exp(F(one - high))) for one in logits)
    log_sum = F(math.log(total))
    scale = F(F(high - low) / F(65535))
    inverse = F(F(1) / scale)
    codes = [int(np.rint(F(inverse * F(one - low)))) if one > low else 0 for one in logits]
    return codes, scale, F(F(low - high) - log_sum)


def compared(codes, scale, lowest, logits, token):
    high, best = logits[0], 0
    for place, one in enumerate(logits):
        if one > high:
            high, best = one, place
    total = sum(float(np.exp(F(one - high))) for one in logits)
    log_sum = F(math.log(total))
    loss = F(F(high + log_sum) - logits[token])
    original = F(-F(F(scale * F(codes[token])) + lowest))
    high = F(high + log_sum)
    kl, best_base, top = 0.0, -1, F(0)
    for place, code in enumerate(codes):
        log_p = F(F(scale * F(code)) + lowest)
        if place == 0 or log_p > top:
            top, best_base = log_p, place
        if log_p > -16:
            kl += float(F(np.exp(log_p) * F(F(log_p - logits[place]) + high)))
    return kl, loss, original, F(np.exp(-loss) - np.exp(-original)), best == best_base, np.exp(top)


def printed(kl, loss, original, dp, same, _):
    """The end of kl_divergence() in perplexity.cpp, as text."""
    count = len(kl)

    def mean(values):
        total = sum(float(one) for one in values)
        squares = sum(float(one * one) for one in values)
        average = total / count
        spread = squares / count - average * average
        return average, math.sqrt(spread / (count - 1)) if spread > 0 else 0.0

    def percentile(values, share):
        ranked = sorted(F(one) for one in values)
        place = F(F(share) * F(count - 1))
        whole = int(place)
        place -= F(whole)
        return (1 - place) * ranked[whole] + place * ranked[min(whole + 1, count - 1)]

    own, base, divergence = mean(loss), mean(original), mean(kl)
    both = sum(float(a * b) for a, b in zip(loss, original, strict=True)) / count
    covariance = (both - own[0] * base[0]) / (count - 1)
    log_ratio = own[0] - base[0], math.sqrt(own[1] ** 2 + base[1] ** 2 - 2 * covariance)
    square = mean([F(one * one) for one in dp])
    rms = math.sqrt(square[0])
    top = sum(same) / count
    half = count // 2
    ranked = sorted(F(one) for one in kl)
    median = ranked[half] if count % 2 else F(0.5) * (ranked[half] + ranked[half - 1])
    return {
        "perplexity": f"{math.exp(own[0]):.6f} ± {math.exp(own[0]) * own[1]:.6f}",
        "original_perplexity": f"{math.exp(base[0]):.6f} ± {math.exp(base[0]) * base[1]:.6f}",
        "log_ratio": f"{log_ratio[0]:.6f} ± {log_ratio[1]:.6f}",
        "kl": f"{divergence[0]:.6f} ± {divergence[1]:.6f}",
        "kl_median": f"{median:.6f}",
        "kl_999": f"{percentile(kl, 0.999):.6f}",
        "kl_max": f"{ranked[-1]:.6f}",
        "rms_dp": f"{100 * rms:.3f} ± {100 * 0.5 / rms * square[1]:.3f} %",
        "same_top": f"{100 * top:.3f} ± {100 * math.sqrt(top * (1 - top) / (count - 1)):.3f} %",
    }


@pytest.fixture(scope="module")
def both(logits):
    teacher, own = logits
    found = scored_tokens(teacher, (part for window in own for part in window.split(100)))
    return found, as_the_tool(teacher.tokens, teacher.hidden @ teacher.head.T, own)


def test_figures_are_those_of_the_tool_to_its_printed_digits(both):
    from bitquilt.report.wikitext import TOOL_NAMES, tool_figure

    found, tool = both
    figures = wikitext_figures("wiki", found)
    assert figures.tokens == WINDOWS * (CONTEXT - 1 - SKIPPED) == len(tool[0])
    assert {field: tool_figure(figures, field) for field in TOOL_NAMES} == printed(*tool)
    assert figures.kl.value > 0.01


def test_kl_by_confidence_is_of_the_tokens_where_the_original_is_that_sure(both):
    found, tool = both
    figures = wikitext_figures("wiki", found)
    sure = np.array(tool[5])
    seen = 0
    for one in figures.by_confidence:
        here = (sure >= one.low) & ((sure < one.high) | (one.high == 1))
        assert one.tokens == here.sum() > 0
        assert one.kl.value == pytest.approx(np.array(tool[0])[here].mean(), rel=1e-5)
        assert one.same_top == pytest.approx(np.array(tool[4])[here].mean())
        seen += one.tokens
    assert seen == figures.tokens
    assert len(figures.by_confidence) <= len(CONFIDENCES) - 1


def test_equal_logits_have_no_scale_and_no_divergence():
    """The tool's codes are zero where all logits are equal."""
    teacher = Teacher(torch.zeros(2, CONTEXT, dtype=torch.int64), torch.zeros(2, CONTEXT, 4),
                      torch.zeros(8, 4))  # fmt: skip
    figures = wikitext_figures("wiki", scored_tokens(teacher, iter(torch.zeros(2, CONTEXT, 8))))
    assert figures.kl.value == pytest.approx(0, abs=1e-6)
    assert figures.perplexity.value == pytest.approx(8, rel=1e-5)
    assert figures.rms_dp.error == 0.0


def test_every_window_begins_with_the_start_token_and_the_rest_is_left_out():
    ids = [7, *range(100, 100 + 2 * CONTEXT + 9)]
    windows = wikitext_windows("wiki", ids, [7])
    assert windows.shape == (2, CONTEXT)
    assert windows[:, 0].tolist() == [7, 7]
    assert windows[1, 1].item() == ids[CONTEXT + 1]
    assert wikitext_windows("wiki", ids, [])[1, 0].item() == ids[CONTEXT]


def test_a_short_text_is_refused(tmp_path):
    path = tmp_path / "wiki.raw"
    path.write_text("Too short\n")
    with pytest.raises(UserError, match=r"wiki\.raw has 9 tokens.*at least 1,024.*wikitext, for"):
        ProtocolText.of(path, lambda document: [*document.text.encode()])
