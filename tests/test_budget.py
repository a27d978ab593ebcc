"""A budget of time: kept, told what it cost, and read from what people write."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from test_resume import Templates

from goodnet.cli.options import parse_time
from goodnet.errors import GoodnetError
from goodnet.images import Images
from goodnet.pipelines.begin import begin
from goodnet.pipelines.load import load
from goodnet.pipelines.ranking import GLANCE, LEADERS, STROLL, rank
from goodnet.pipelines.scan import scan


def test_a_budget_is_kept_and_what_was_skipped_is_told(honest):
    classifier = load(honest.module, honest.clean)
    report = scan(classifier, honest.clean, seed=4, budget=0.05, workers=1)
    assert report.verdict == "inconclusive"
    # One may be done: what has begun is not cut off.
    first = 12 - len(report.skipped)
    assert first <= 1
    assert report.skipped == list(range(first, 12))
    assert report.settings["skipped"] == len(report.skipped)
    told = f"{len(report.skipped)} labels were skipped"
    assert any(told in reason for reason in report.reasons)
    assert any("small changes of the images was cut short" in reason for reason in report.reasons)


def test_a_ranking_that_is_cut_off_keeps_the_leaders_of_the_round_before(tmp_path):
    """Rounds go by the labels' numbers: the last ones must not lose by that."""
    many = 400
    shown = torch.rand(many, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = Images((shown * 255).round().byte(), torch.arange(many))
    classifier, stages = load(Templates(shown), images), []

    class Slow:
        """Waits, in the round that is to be cut off, until its time is up."""

        deadline = 0.0

        def __call__(self, stage, done, total):
            if stage not in stages:
                stages.append(stage)
            if stage == STROLL.purpose:
                time.sleep(max(0.0, self.deadline - time.monotonic()))

    slow = Slow()
    begun = begin(classifier, images, "default", None, 4, 1, slow, None, None)
    whole = rank(begun.case, begun.wanted)
    assert not whole.cut_off
    stages.clear()
    slow.deadline = time.monotonic() + 6.0
    cut = rank(replace(begun.case, deadline=slow.deadline), begun.wanted)
    assert stages == [GLANCE.purpose, STROLL.purpose]
    assert cut.cut_off
    assert cut.skipped == []
    assert cut.margins == whole.margins
    first = sorted(cut.margins, key=lambda label: -cut.margins[label])
    assert cut.chosen[:LEADERS] == first[:LEADERS]
    assert max(cut.chosen[:LEADERS]) > many // 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (None, None)]
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "five", "0", "-3m", "nan", "inf", "5d", "1e999"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(GoodnetError) as caught:
        parse_time(text)
    assert caught.value.code == "R003"
