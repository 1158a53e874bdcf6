"""What plots are drawn from."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import nan

import numpy as np
import pytest

from bitquilt.allocation.history import history_path, latest_histories
from bitquilt.metrics.kl import Estimate
from bitquilt.report import plots
from bitquilt.report.peers import FrontPoint


def test_a_search_is_told_in_comparable_steps():
    """The second text is ten times as hard; the mix B is a fifth better on both."""
    lines = [
        {"mix": "A", "windows": [0], "kl": [[0.1]], "tokens": 1},
        {"mix": "B", "windows": [0], "kl": [[0.08]], "tokens": 2},
        {"best": "A", "file": "f", "tokens": 2},
        {"mix": "A", "windows": [1], "kl": [[1.0]], "tokens": 3},
        {"mix": "B", "windows": [1], "kl": [[0.8]], "tokens": 4},
        {"best": "B", "file": "f", "tokens": 4},
        {"mix": "C", "windows": [1], "kl": [[0.4]], "tokens": 5},
        {"best": "C", "file": "f", "tokens": 5},
    ]
    tried, best = plots._compared(lines)
    assert [tokens for tokens, _ in tried] == [1, 2, 3, 4, 5]
    assert [kl for _, kl in tried] == pytest.approx([1.0, 0.8, 1.0, 0.8, 0.4])
    assert best["f"] == [(2, 1.0), (4, pytest.approx(0.8)), (5, pytest.approx(0.4))]


def test_searches_for_two_targets_are_told_apart_and_their_labels_too(tmp_path):
    histories = {}
    for target, kl in (("gguf", 0.05), ("mlx", 0.09)):
        lines = [
            {"mix": "A", "windows": [0], "kl": [[0.1]], "tokens": 1},
            {"best": "A", "file": "4.5bit", "tokens": 1},
            {"mix": "B", "windows": [0], "kl": [[kl]], "tokens": 2},
            {"best": "B", "file": "4.5bit", "tokens": 2},
        ]
        histories[target] = history_path(tmp_path, target, "64")
        histories[target].parent.mkdir(exist_ok=True)
        histories[target].write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert latest_histories(tmp_path) == histories
    found = plots.search_plot(histories)
    labels = {curve["label"]: curve["label_y"] for curve in found.values["curves"]}
    assert labels.keys() == {"4.5bit, gguf 0.50", "4.5bit, mlx 0.90"}
    one, other = labels.values()
    assert abs(one - other) >= plots.LINE_HEIGHT


def test_the_legend_of_the_front_names_every_mark_and_fits():
    point = FrontPoint(
        name="a", label="a", target="gguf", nbytes=10, kl=Estimate(0.1, 0.05, 0.2), ours=True
    )
    worse = replace(point, nbytes=20, kl=Estimate(0.2, 0.1, 0.3))
    better = replace(point, nbytes=30, kl=Estimate(0.05, 0.02, 0.1))
    files = [
        replace(one, target=target, ours=ours)
        for one in (point, worse, better)
        for target in ("gguf", "mlx")
        for ours in (True, False)
    ]
    legend = plots.pareto_plot(files).values["legend"]
    assert [entry["text"] for entry in legend] == [
        "by bitquilt, for llama.cpp",
        "by others, for llama.cpp",
        "by bitquilt, for mlx-lm",
        "by others, for mlx-lm",
        "hollow: not the closest",
        "the closest at each size",
        "95 % interval",
    ]
    columns = sorted({entry["x"] for entry in legend})
    ends = [*columns[1:], plots.WIDTH]
    for entry in legend:
        assert entry["x"] + 13 + 6.5 * len(entry["text"]) < ends[columns.index(entry["x"])]


def test_a_label_is_not_on_the_point_of_another_file():
    """Two files of nearly one size: what is beside the first is the second and its interval."""
    files = [
        FrontPoint(
            name=label, label=label, target=target, nbytes=nbytes, ours=True,
            kl=Estimate(kl, low, high),
        )
        for label, target, nbytes, kl, low, high in (
            ("3.5bit", "gguf", 60_652_192, 0.636, 0.504, 0.832),
            ("3.5bit", "mlx", 62_590_783, 0.617, 0.492, 0.845),
            ("4.5bit", "gguf", 77_469_088, 0.129, 0.11, 0.152),
            ("4.5bit", "mlx", 79_400_767, 0.135, 0.113, 0.173),
        )
    ]  # fmt: skip
    points = plots.pareto_plot(files).values["points"]
    for point in points:
        width = plots.LETTER_WIDTH * len(point["label"])
        left = point["label_x"] - width * plots.LEFT_OF[point["anchor"]]
        assert left > plots.LEFT
        assert left + width < plots.WIDTH
        for other in points:
            beside = other["x"] + 5 <= left or left + width <= other["x"] - 5
            above = point["label_y"] + 2 <= min(other["high"], other["y"] - 5)
            below = point["label_y"] - 10 >= max(other["low"], other["y"] + 5)
            assert beside or above or below


def test_labels_are_apart_from_each_other_and_from_the_line():
    """The files of the README's picture; a label of 18 letters is beside a point of another."""
    files = [
        FrontPoint(
            name=label, label=label, target="gguf", nbytes=nbytes, ours="llama" not in label,
            kl=Estimate(kl, 0.88 * kl, 1.13 * kl),
        )
        for label, nbytes, kl in (
            ("3.5bit", 6_021_184, 0.172), ("Q3_K_M", 7_327_552, 0.112),
            ("4.5bit", 7_660_864, 0.0477), ("Q4_K_M", 8_588_096, 0.0415),
            ("llama.cpp-Q4_K_M", 8_581_952, 0.096), ("5.5bit", 9_300_288, 0.0169),
        )
    ]  # fmt: skip
    values = plots.pareto_plot(files).values
    boxes = []
    for point in values["points"]:
        width = plots.LETTER_WIDTH * len(point["label"])
        left = point["label_x"] - width * plots.LEFT_OF[point["anchor"]]
        boxes.append((left, left + width, point["label_y"] - 10, point["label_y"] + 2))
    for n, (left, right, top, bottom) in enumerate(boxes):
        assert left > plots.LEFT
        assert right < plots.WIDTH
        for left_2, right_2, top_2, bottom_2 in boxes[:n]:
            assert right <= left_2 or right_2 <= left or bottom + 1 <= top_2 or bottom_2 + 1 <= top
        for line in values["frontiers"]:
            for start, end in pairwise(line):
                for share in np.linspace(0, 1, 200):
                    x, y = (start[a] + share * (end[a] - start[a]) for a in "xy")
                    assert not (left < x < right and top < y < bottom)


def test_what_is_not_there_is_not_in_the_legend():
    alone = FrontPoint(
        name="a", label="a", target="mlx", nbytes=10, kl=Estimate(0.1, nan, nan), ours=True
    )
    legend = plots.pareto_plot([alone]).values["legend"]
    assert [entry["text"] for entry in legend] == ["by bitquilt, for mlx-lm"]
