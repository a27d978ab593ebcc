"""The geometry of the page's plots. The template draws them, so that it also does the escaping.

All places are in per cent of the plotting area, x from the left and y from the top: such an SVG
can be stretched to any screen while its letters keep their size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from goodnet.render.words import label_name, number
from goodnet.reports import LabelEvidence, Proportion, RepairReport, ScanReport

FEW = 60
"""Up to so many labels get a stem, which helps the eye to find the axis."""

NAMED = 6
"""At most so many marks are named; more names would cover each other."""

TYPICAL = (720.0, 260.0)
"""Pixels of a plot on a desktop, to tell which names would collide."""

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """One label in a plot. ``text`` is written beside it, ``lift`` pixels higher."""

    x: float
    y: float
    title: str
    flagged: bool = False
    text: str = ""
    anchor: str = "start"
    lift: int = 0


@dataclass(frozen=True)
class Chart:
    """Dots over labels. ``alt`` says in a sentence what can be seen; stems begin at ``floor``."""

    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str
    alt: str
    line: Tick | None = None
    stems: bool = False
    floor: float = 100.0


@dataclass(frozen=True)
class Bar:
    """A proportion and its interval, all in per cent."""

    when: str
    value: float
    low: float
    high: float


def margin_chart(report: ScanReport) -> Chart | None:
    """The margin index of every label (the margin itself where there is no index)."""
    indexed = any(label.margin_index is not None for label in report.labels)
    values = [
        (label, value)
        for label in report.labels
        if (value := label.margin_index if indexed else label.margin) is not None
        and math.isfinite(value)
    ]
    if not values:
        return None
    heights = [value for _, value in values]
    ticks = _nice(min(0.0, *heights), max(heights))
    y = _linear(ticks[0], ticks[-1])
    last = max(1, report.model.num_classes - 1, *(label.label for label, _ in values))
    # Half a step of air on both sides keeps the first and the last label off the frame.
    air = 0.5 if last < FEW else 0.0
    width = last + 2 * air
    marks = [
        _mark(report, label, 100 * (label.label + air) / width, y(value), value)
        for label, value in values
    ]
    numbers = range(last + 1) if last < 24 else [int(at) for at in _nice(0, last) if at <= last]
    name = "margin index" if indexed else "margin"
    top, height = max(values, key=lambda pair: pair[1])
    return Chart(
        marks=_named(marks),
        x_ticks=[Tick(100 * (at + air) / width, f"{at}") for at in numbers],
        y_ticks=[Tick(y(at), f"{at:g}") for at in ticks],
        x_title="label",
        y_title=name,
        alt=f"The {name} of {len(values)} labels; the largest is {number(height)}, "
        f"of label {label_name(report, top.label)}.",
        stems=len(values) <= FEW,
        floor=y(0.0),
    )


def mask_chart(report: ScanReport) -> Chart | None:
    """The smallest mask of every label that was inverted, in order, and the MAD rule's line."""
    found = [
        (label, label.mask_l1)
        for label in report.labels
        if label.mask_l1 is not None and math.isfinite(label.mask_l1)
    ]
    if not found:
        return None
    found.sort(key=lambda pair: pair[1])
    sizes = [size for _, size in found]
    rule = mad_line(sizes)
    drawn = sizes if rule is None else [*sizes, rule]
    y, ticks = _size_axis(drawn)
    step = 100 / len(found)
    marks = [
        _mark(report, label, (place + 0.5) * step, y(size), size)
        for place, (label, size) in enumerate(found)
    ]
    few = len(found) <= 24
    smallest = label_name(report, found[0][0].label)
    return Chart(
        marks=_named(marks),
        x_ticks=[
            Tick((place + 0.5) * step, str(label.label))
            for place, (label, _) in enumerate(found)
            if few
        ],
        y_ticks=ticks,
        x_title="inverted labels, smallest mask first",
        y_title="mask L1, pixels",
        alt=f"The mask L1 of {len(found)} labels; the smallest is {number(sizes[0])} pixels, "
        f"of label {smallest}.",
        line=None if rule is None else Tick(y(rule), "MAD index 2"),
        stems=len(found) <= FEW,
    )


def mad_line(sizes: Sequence[float]) -> float | None:
    """The size at which the MAD index is 2, below which Neural Cleanse's rule flags a label.

    ``median - 2 * 1.4826 * MAD``; None where no size can lie below it.

    Reference: Wang et al., Neural Cleanse, IEEE S&P 2019, section IV-B.
    """
    if len(sizes) < 3:
        return None
    middle = statistics.median(sizes)
    spread = statistics.median(abs(size - middle) for size in sizes)
    line = middle - 2.0 * 1.4826 * spread
    return line if line > 0.0 else None


def repair_bars(repair: RepairReport) -> list[tuple[str, list[Bar]]]:
    """Before and after, by figure: clean accuracy first, then attack success per target."""
    certificate = repair.certificate
    groups = [
        (
            "Clean accuracy",
            _pair(certificate.clean_accuracy_before, certificate.clean_accuracy_after),
        )
    ]
    for label, before in certificate.attack_success_before.items():
        which = "" if label < 0 else "label "
        name = f"Attack success, {which}{label_name(repair.scan, label)}"
        groups.append((name, _pair(before, certificate.attack_success_after.get(label))))
    return groups


def _pair(before: Proportion, after: Proportion | None) -> list[Bar]:
    both = [("before", before), ("after", after)]
    return [
        Bar(when, 100 * p.value, 100 * p.low, 100 * p.high)
        for when, p in both
        if p is not None and math.isfinite(p.value)
    ]


def _mark(report: ScanReport, label: LabelEvidence, x: float, y: float, value: float) -> Mark:
    name = label_name(report, label.label)
    text = name if label.flagged else ""
    anchor = "start" if x < 60 else "end"
    return Mark(round(x, 2), round(y, 2), f"{name}: {number(value)}", label.flagged, text, anchor)


def _named(marks: list[Mark]) -> list[Mark]:
    """Names the first flagged marks, one above the other where they would collide.

    The flagged come last, so that they are drawn over the others.
    """
    placed: list[tuple[float, float]] = []
    named = []
    for mark in (mark for mark in marks if mark.flagged):
        text, lift = mark.text if len(placed) < NAMED else "", 0
        x, y = mark.x / 100 * TYPICAL[0], mark.y / 100 * TYPICAL[1]
        while any(abs(x - a) < 170 and abs(y - lift - b) < 15 for a, b in placed):
            lift += 15
        if text:
            placed.append((x, y - lift))
        named.append(Mark(mark.x, mark.y, mark.title, True, text, mark.anchor, lift))
    return [mark for mark in marks if not mark.flagged] + named


def _linear(low: float, high: float) -> Scale:
    return lambda value: round(100.0 * (high - value) / (high - low), 2)


def _size_axis(sizes: Sequence[float]) -> tuple[Scale, list[Tick]]:
    """Logarithmic where the sizes span more than a factor of five, else from zero."""
    low, high = min(sizes), max(sizes)
    if low > 0 and high > 5 * low:
        ticks = _powers(low, high)
        bottom, top = math.log(min(low, ticks[0])), math.log(max(high, ticks[-1]))
        scale = _linear(bottom - 0.03 * (top - bottom), top + 0.03 * (top - bottom))
        return (lambda size: scale(math.log(max(size, low)))), [
            Tick(scale(math.log(at)), f"{at:g}") for at in ticks
        ]
    ticks = _nice(0.0, high)
    scale = _linear(ticks[0], ticks[-1])
    return scale, [Tick(scale(at), f"{at:g}") for at in ticks]


def _powers(low: float, high: float) -> list[float]:
    """The 1-2-5 series (1-10-100 over many decades) from just below ``low`` to just above."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    stride = 1 + (last - first) // 8
    series = [step * 10.0**power for power in range(first, last + 1, stride) for step in steps]
    below = max((at for at in series if at <= low), default=series[0])
    above = min((at for at in series if at >= high), default=series[-1])
    return [at for at in series if below <= at <= above]


def _nice(low: float, high: float) -> list[float]:
    """About five round numbers that enclose ``low`` to ``high``."""
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    start, stop = math.floor(low / step), math.ceil((low + span) / step)
    return [round(place * step, 10) for place in range(start, stop + 1)]
