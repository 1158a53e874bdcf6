"""Plots as SVG, from small templates: inline in the page, or alone for PNG.

Sizes are in the units of a view box 420 wide, chosen so that text is readable on a phone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from bitquilt.allocation.history import read_history
from bitquilt.metrics.kl import Estimate
from bitquilt.report.figures import figure_text
from bitquilt.report.peers import FrontPoint
from bitquilt.report.run_record import OutputRecord
from bitquilt.report.scale import Linear, Log, log_span, short, span
from bitquilt.targets import TARGETS

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 22, 42
LETTER_WIDTH = 7.8
LINE_HEIGHT, LABEL_GAP = 14, 9
LEGEND_GAP, LEGEND_LINE, SECOND_COLUMN = 14, 19, 236
PLACES = (("start", 8, 4), ("end", -8, 4), ("start", 8, -9), ("end", -8, -9), ("start", 8, 17),
          ("end", -8, 17), ("start", 8, -22), ("end", -8, -22), ("middle", 0, -14),
          ("middle", 0, 22), ("middle", 0, -24), ("middle", 0, 32))  # fmt: skip
"""Where a label may be beside its point: the end that is near it, and how far away that is."""
LEFT_OF = {"start": 0.0, "middle": 0.5, "end": 1.0}
"""The share of a label that is on the left of the place it is anchored at."""
AXIS_HEIGHT = 38
"""What ticks and title of an axis take below a plot."""
MB = 1e6

PARTS = ("codes", "scales", "embedding", "norms", "tokenizer", "vision", "metadata", "padding")
"""The parts of a file, in the order they are drawn."""


def environment() -> Environment:
    """Templates beside this module; what goes into HTML and SVG is escaped."""
    found = Environment(
        loader=PackageLoader("bitquilt.report"),
        autoescape=select_autoescape(("html", "svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["short"] = short
    found.filters["code"] = code_marked
    return found


def code_marked(text: str) -> Markup:
    """Give a sentence as HTML; what stands between backticks is code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def css() -> str:
    """Give the style sheet of plots, in colours that the page's own defines."""
    return environment().get_template("plot.css").render(parts=PARTS)


def standalone_css() -> str:
    """Give the style sheet of a plot that stands alone, with the page's colours of the day."""
    page = environment().get_template("style.css").render(ramp=[], plot_css="")
    day = page.partition("@media")[0]
    colours = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", day))
    plain = css().partition("@media")[0].replace(".plot ", "")
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], plain)


@dataclass(frozen=True)
class Plot:
    """A template and what goes into it."""

    name: str
    title: str
    """What screen readers say it is."""
    values: Mapping[str, Any]

    def svg(self, style: str = "") -> str:
        """The SVG element, with a style sheet of its own if it stands alone."""
        template = environment().get_template(f"{self.name}.svg")
        return template.render(
            width=WIDTH, title=self.title, style=style, name=self.name, **self.values
        )


def pareto_plot(files: Sequence[FrontPoint]) -> Plot:
    """Plot mean KL with its interval against the file's size; all were measured on one text."""
    sizes = [file.nbytes / MB for file in files]
    kls = [value for file in files for value in _ends(file.kl)]
    x = Linear(*span(sizes, 0.15), LEFT, WIDTH - RIGHT)
    y = Log(*log_span(kls), HEIGHT - BOTTOM, TOP)
    points = [
        {
            "x": x(file.nbytes / MB),
            "y": y(file.kl.mean),
            "low": y(_ends(file.kl)[0]),
            "high": y(_ends(file.kl)[-1]),
            "label": file.label,
            "said": _said(file),
            "target": file.target,
            "ours": file.ours,
            "best": _best(file, files),
        }
        for file in files
    ]
    title = "Mean KL divergence from the original against file size: " + "; ".join(
        map(_said, files)
    )
    frontiers = [
        [point for point in points if point["target"] == target and point["best"]]
        for target in TARGETS
    ]
    entries = _front_entries(files, points, any(len(line) > 1 for line in frontiers))
    values = {
        "points": _labelled(points, [pair for line in frontiers for pair in pairwise(line)]),
        "frontiers": frontiers,
        "x_ticks": [(x(tick), short(tick)) for tick in x.ticks()],
        "y_ticks": [(y(tick), short(tick)) for tick in y.ticks()],
        "frame": _frame(),
        **_legend(entries, HEIGHT),
    }
    return Plot("pareto", title, values)


def _said(file: FrontPoint) -> str:
    """Say in words what a point shows."""
    return f"{file.name}, {file.nbytes / MB:.2f} MB, KL {figure_text(file.kl, 'kl')} nats per token"


def _front_entries(
    files: Sequence[FrontPoint], points: Sequence[Mapping[str, Any]], lines: bool
) -> list[tuple[str, str]]:
    """List the marks of the plot of KL against size: classes, and what they stand for."""
    entries = []
    for target in TARGETS.values():
        shown = [file.ours for file in files if file.target == target.name]
        if True in shown:
            entries.append((f"{target} ours", f"by bitquilt, for {target.engine}"))
        if False in shown:
            entries.append((f"{target} theirs", f"by others, for {target.engine}"))
    if behind := [point for point in points if not point["best"]]:
        kind = "ours" if behind[0]["ours"] else "theirs"
        entries.append((f"{behind[0]['target']} {kind} behind", "hollow: not the closest"))
    if lines:
        entries.append(("frontier", "the closest at each size"))
    if not all(math.isnan(file.kl.low) for file in files):
        entries.append(("interval", "95 % interval"))
    return entries


def _legend(entries: Sequence[tuple[str, str]], top: float) -> dict[str, Any]:
    """Place a legend in two columns below a plot, and give the height of both.

    Args:
        entries: classes of a mark, and what the mark stands for.
        top: where the plot ends.
    """
    rows = -(-len(entries) // 2)
    placed = [
        {
            "x": 10 + (n // rows) * SECOND_COLUMN,
            "y": top + LEGEND_GAP + (n % rows) * LEGEND_LINE,
            "mark": mark,
            "text": text,
        }
        for n, (mark, text) in enumerate(entries)
    ]
    return {"legend": placed, "height": round(top + LEGEND_GAP + rows * LEGEND_LINE, 1)}


def _ends(kl: Estimate) -> tuple[float, ...]:
    """Give what of low, mean and high can be drawn on a logarithmic axis."""
    return tuple(value for value in (kl.low, kl.mean, kl.high) if value > 0) or (1e-6,)


def _best(file: FrontPoint, files: Sequence[FrontPoint]) -> bool:
    """Whether no other file of its kind is as small and closer."""
    return not any(
        other.target == file.target and other.nbytes <= file.nbytes and other.kl.mean < file.kl.mean
        for other in files
    )


def _labelled(
    points: list[dict[str, Any]], lines: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Points with a place for their label: the first around them where nothing is yet, or, where
    there is none, the first where only a line is.

    Args:
        points: what is labelled.
        lines: the two ends of each straight line of the plot.
    """
    taken = []
    for point in points:
        top, bottom = min(point["high"], point["y"] - 6), max(point["low"], point["y"] + 6)
        taken.append(_Box(point["x"] - 6, top, 12, bottom - top))
    drawn = [step for line in lines for step in _steps(*line)]
    for point in points:
        width = LETTER_WIDTH * len(point["label"])
        around = [*PLACES, *_beyond_interval(point)]
        places = [
            _Box(
                point["x"] + dx - width * LEFT_OF[anchor],
                point["y"] + dy - LINE_HEIGHT + 3,
                width,
                LINE_HEIGHT,
            )
            for anchor, dx, dy in around
        ]
        clear = [
            n
            for n, place in enumerate(places)
            if place.x > LEFT and place.x + width < WIDTH and not any(map(place.meets, taken))
        ]
        free = [n for n in clear if not any(map(places[n].meets, drawn))]
        chosen = next(iter(free or clear), 0)
        taken.append(places[chosen])
        anchor, dx, dy = around[chosen]
        point |= {"label_x": point["x"] + dx, "label_y": point["y"] + dy, "anchor": anchor}
    return points


def _beyond_interval(point: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """List places for a label above and below a point's interval, as :data:`PLACES` has them."""
    above, below = point["high"] - point["y"] - 4, point["low"] - point["y"] + LINE_HEIGHT
    inside = {
        dy: point["y"] + dy - LINE_HEIGHT > TOP and point["y"] + dy < HEIGHT - BOTTOM
        for dy in (above, below)
    }
    sides = (("middle", 0.0), ("end", 8.0), ("start", -8.0))
    return [(anchor, dx, dy) for dy, fits in inside.items() if fits for anchor, dx in sides]


def _steps(start: Mapping[str, Any], end: Mapping[str, Any], count: int = 60) -> Iterator[_Box]:
    """Yield a straight line as dots that are close to each other."""
    for n in range(count + 1):
        share = n / count
        x, y = (start[axis] + share * (end[axis] - start[axis]) for axis in ("x", "y"))
        yield _Box(x, y, 1, 1)


@dataclass(frozen=True)
class _Box:
    """A rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        """Whether the two overlap."""
        apart_x = self.x >= other.x + other.width or other.x >= self.x + self.width
        apart_y = self.y >= other.y + other.height or other.y >= self.y + self.height
        return not (apart_x or apart_y)


def _frame() -> dict[str, float]:
    return {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


def parts_plot(files: Sequence[OutputRecord]) -> Plot:
    """Plot where the bytes of each file are, one bar for each."""
    bar, gap = 24, 22
    most = max(record.nbytes for record in files)
    x = Linear(0, most, 0, WIDTH)
    rows = []
    for number, record in enumerate(files):
        start, top = 0.0, number * (bar + gap) + 14
        pieces = []
        for part in PARTS:
            nbytes = record.breakdown.get(part, 0)
            if nbytes:
                width = x(start + nbytes) - x(start)
                share = f"{nbytes / record.nbytes:.0%}"
                pieces.append({"x": x(start), "width": width, "part": part, "share": share})
            start += nbytes
        label = f"{record.name}, {record.nbytes / MB:.2f} MB"
        rows.append({"top": top, "label": label, "pieces": pieces})
    used = [part for part in PARTS if any(record.breakdown.get(part) for record in files)]
    bottom = len(rows) * (bar + gap) + 4
    megabytes = Linear(0, most / MB, 0, WIDTH)
    values = {
        "rows": rows,
        "bar": bar,
        "bottom": bottom,
        "x_ticks": [(megabytes(tick), short(tick)) for tick in megabytes.ticks()],
        **_legend([(f"part {part}", part) for part in used], bottom + AXIS_HEIGHT),
    }
    title = (
        "Where the bytes of each file are: size on disk in MB, by kind; the table below has them"
    )
    return Plot("parts", title, values)


def search_plot(histories: Mapping[str, Path]) -> Plot | None:
    """Plot how the mixes that searches tried compare with their best; None if none ran.

    Args:
        histories: target → what its search noted.
    """
    tried: Points = []
    best: list[tuple[str, str, Points]] = []
    for target, history in histories.items():
        seen, of_files = _compared(read_history(history))
        tried += seen
        best += [(target, file, steps) for file, steps in of_files.items()]
    if not best:
        return None
    points = [*tried, *(step for _, _, steps in best for step in steps)]
    x = Linear(0, max(tokens for tokens, _ in points) / 1e6, LEFT, WIDTH - RIGHT)
    y = Log(*log_span([kl for _, kl in points]), HEIGHT - BOTTOM, TOP)
    curves = [
        {
            "target": target,
            "label": f"{file}, {target} {steps[-1][1]:.2f}",
            "steps": [
                *((x(tokens / 1e6), y(kl)) for tokens, kl in steps),
                (x.end, y(steps[-1][1])),
            ],
        }
        for target, file, steps in best
    ]
    values = {
        "tried": [(x(tokens / 1e6), y(kl)) for tokens, kl in tried],
        "curves": _stacked(curves),
        "x_ticks": [(x(tick), short(tick)) for tick in x.ticks()],
        "y_ticks": [(y(tick), short(tick)) for tick in y.ticks()],
        "frame": _frame(),
        **_legend(
            [
                ("tried", "one measured mix of types"),
                *(
                    (f"best {target}", f"the best mix of types so far, {target}")
                    for target in histories
                ),
            ],
            HEIGHT,
        ),
    }
    title = f"The search: KL of {len(tried):,} measurements, and of the best mix of types so far"
    return Plot("search", title, values)


def _stacked(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Curves with a place for their labels: above all ends, in their order."""
    ends = [curve["steps"][-1][1] for curve in curves]
    order = sorted(range(len(curves)), key=lambda i: -ends[i])
    for place, i in enumerate(order):
        curves[i]["label_y"] = round(min(ends) - LABEL_GAP - place * LINE_HEIGHT, 1)
    return curves


Points = list[tuple[int, float]]
"""Tokens read so far, and KL over that of the mix that the search began with."""


def _compared(lines: Sequence[dict[str, Any]]) -> tuple[Points, dict[str, Points]]:
    """What was tried for any file, and file → its best so far.

    Text differs more than mixes do, so a mix is compared with the best one until then on the
    windows that both have read. What was measured before a step forward was for that file.
    """
    known: dict[str, dict[int, float]] = {}
    tried: Points = []
    best: dict[str, Points] = {}
    holders: dict[str, str] = {}
    pending: list[dict[str, Any]] = []
    for line in lines:
        if "kl" in line:
            means = [_mean([kl]) for kl in line["kl"]]
            known.setdefault(line["mix"], {}).update(zip(line["windows"], means, strict=True))
            pending.append(line)
            continue
        file, mix = line["file"], line["best"]
        holder = known.get(holders.get(file, mix), {})
        level = best[file][-1][1] if file in best else 1.0
        for one in pending:
            over = _over(known[one["mix"]], holder, one["windows"])
            tried += [(one["tokens"], level * over)] if over else []
        over = _over(known.get(mix, {}), holder, list(holder)) or 1.0
        best.setdefault(file, []).append((line["tokens"], level * over))
        holders[file], pending = mix, []
    return tried, best


def _over(one: Mapping[int, float], other: Mapping[int, float], windows: Sequence[int]) -> float:
    """KL of one mix over another's, on those of the windows that both have read; 0 if on none."""
    both = [window for window in windows if window in one and other.get(window, 0) > 0]
    return sum(one[w] for w in both) / sum(other[w] for w in both) if both else 0.0


def _mean(windows: Sequence[Sequence[float]]) -> float:
    samples = [value for window in windows for value in window]
    return sum(samples) / len(samples)
