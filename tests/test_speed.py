"""The programs that measure speed: their records and their table; not how fast anything is."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from goodnet.images import Images
from goodnet.pipelines.load import load

HERE = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))

import speed  # noqa: E402 - the benchmark is a folder of programs, not a package
import speed_records  # noqa: E402 - its folder is put on the path first
import speed_rows  # noqa: E402 - its folder is put on the path first
import speed_table  # noqa: E402 - its folder is put on the path first

SCAN = {"right": True, "seconds": 95.2, "workers": 2, "peak_memory_mb": 611.0}
FOUND = {
    "scan": SCAN,
    "neural-cleanse": {
        "sample": [1, 2],
        "ratio": 900.0,
        "ratio_low": 800.0,
        "ratio_high": None,
        "seconds_all": 90_000,
        "seconds_all_low": 80_000,
        "seconds_all_high": 1e5,
    },
    "peers": {
        "peers": {
            "art": {"missing": "no environment for art"},
            "trojanzoo": {
                "version": "2.0.3",
                "labels_searched": 6,
                "extrapolated": True,
                "ratio": 7.0,
            },
        }
    },
    "kernel": {
        "ratio": 0.93,
        "ascend": 3000.0,
        "ascend_chunk": 48,
        "bare_best": 3200.0,
        "bare_chunk": 64,
        "ascend_half": 4800.0,
    },
    "card": {
        "card": "a card",
        "seconds": [9.0, 3.0],
        "seconds_processor": 21.0,
        "right": True,
        "rates": [
            {"compiled": False, "chunk": 48, "float32": 2e4, "bfloat16": 1e4},
            {"compiled": True, "chunk": 4096, "float32": 1e5, "bfloat16": 3e5},
        ],
    },
    "memory": {"by_workers": {"1": SCAN, "2": SCAN}, "peak_memory_mb_reading": 300.0},
    "workers": {"same_answer": True, "ratio": 1.8, "ratios": [1.7, 1.8]},
    "growth": {
        "times_labels": 100.0,
        "times_seconds": 2.0,
        "times_ranking": 20.0,
        "sizes": [
            {
                "labels": 100,
                "seconds": 9.0,
                "seconds_ranking": 1.0,
                "peak_memory_mb": 500.0,
                "verdict": "backdoored",
                "targets": [0],
            }
        ],
    },
    "shortlist": {
        "rows": [
            {"model": "m", "seed": 0, "target": 3, "first_round": 41, "kept": False, "leads": True},
            {"model": "n", "seed": 0, "target": 0, "first_round": 2, "kept": True, "leads": True},
        ],
        "leaders": 12,
        "seeds": 1,
        "targets": 2,
        "kept": 1,
        "lost": 1,
        "exhaustive": {
            "m": {"verdict": "backdoored", "targets": [3], "leading": [3], "seconds": 612.0}
        },
        "missed": 1,
    },
    "gtsrb": {"seconds": 30.0, "verdict": "clean", "targets": [], "model": "m"},
    "fleet": {
        "results": 50,
        "models": 50,
        "answers_told_twice": 0,
        "killed_after_answers": 25,
        "seconds": 900.0,
        "workers": 2,
    },
}


def test_every_row_is_shown_as_it_was_measured_and_none_is_made_up(tmp_path):
    assert set(FOUND) == set(speed.ROWS) == set(speed_table.ROWS)
    assert speed_table.page({}).count("not measured yet") == len(FOUND)
    for row, found in FOUND.items():
        speed_records.write(tmp_path, row, found, seed=3, smoke=False)
    page = speed_table.page(speed_records.latest(tmp_path))
    assert "not measured yet" not in page
    for told in ("900 (95 %: 800 to -)", "art: not measured (no environment", "from 6 labels"):
        assert told in page
    assert "killed after 25 answers" in page
    assert "1.50 of it with gradients in bfloat16" in page
    assert "300,000 in bfloat16 (chunks of 4,096, compiled)" in page
    assert "1 of 2 targets are among the 12 leaders (2 networks, 1 seeds; not there: m)" in page
    assert "(--exhaustive, 612 s) name 1 of those that are not there" in page
    assert "1 more would be if no round left a label out" in page
    record = json.loads(next(tmp_path.glob("scan-*.json")).read_text("utf-8"))
    assert {"machine", "versions", "commit", "when", "seed", "load_before"} <= record.keys()


def test_the_published_page_is_made_from_the_records():
    page = speed_table.page(speed_records.latest(speed_records.SPEED))
    assert (HERE / "SPEED.md").read_text("utf-8") == page
    assert page.count("| `speed.py") == len(speed.ROWS)


def test_records_are_added_and_never_changed(tmp_path, monkeypatch):
    path = speed_records.write(tmp_path, "scan", SCAN, seed=0, smoke=False)
    monkeypatch.setattr(speed_records.time, "strftime", lambda *_: path.stem.split("-", 1)[1])
    with pytest.raises(FileExistsError):
        speed_records.write(tmp_path, "scan", SCAN, seed=0, smoke=False)
    monkeypatch.undo()
    kept = json.loads(path.read_text("utf-8"))
    for name, changed in (
        ("scan-later.json", {"when": "2999-01-01 00:00:00Z", "seconds": 1.0}),
        ("scan-trial.json", {"when": "3000-01-01 00:00:00Z", "smoke": True}),
        ("scan-earlier.json", {"when": "1999-01-01 00:00:00Z"}),
    ):
        (tmp_path / name).write_text(json.dumps(kept | changed), "utf-8")
    assert speed_records.latest(tmp_path)["scan"]["seconds"] == 1.0, "the newest that is no trial"


def test_a_peer_that_was_left_out_is_shown_as_of_its_day(tmp_path):
    def peer(ratio):
        return {"version": "1", "labels_searched": 2, "extrapolated": False, "ratio": ratio}

    path = speed_records.write(
        tmp_path, "peers", {"peers": {"art": peer(300.0), "b": peer(7.0)}}, seed=0, smoke=False
    )
    first = json.loads(path.read_text("utf-8")) | {"when": "2001-02-03 00:00:00Z"}
    path.write_text(json.dumps(first), "utf-8")
    later = first | {"when": "2002-01-01 00:00:00Z", "peers": {"b": peer(8.0)}}
    (tmp_path / "peers-later.json").write_text(json.dumps(later), "utf-8")
    page = speed_table.page(speed_records.latest(tmp_path))
    assert "art (1): 300.0 times, on 2001-02-03; b (1): 8.0 times |" in page


def test_each_row_can_be_run_by_itself():
    for row in speed.ROWS:
        given = speed.options().parse_args([row, "--smoke", "--seed", "5"])
        assert (given.row, given.smoke, given.seed) == (row, True, 5)
        assert speed.budget(given) is not None
        assert speed.budget(speed.options().parse_args([row])) is None


def test_an_interval_of_few_values_is_wide():
    low, high = speed_records.interval([10.0, 12.0, 14.0])
    # By hand: 12 -+ 4.3027 * 2 / sqrt(3).
    assert low == pytest.approx(7.0317, abs=1e-3)
    assert high == pytest.approx(16.9683, abs=1e-3)
    assert speed_records.interval([3.0]) == (0.0, math.inf)


class Net(nn.Module):
    """Laid out as a network of a Keras file is here."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"trunk": nn.Flatten(), "output": nn.Linear(27, 9)})
        with torch.no_grad():
            self.layers["output"].weight.copy_(torch.eye(9, 27) * 9)
            self.layers["output"].bias.copy_(torch.arange(9) / 100)

    def forward(self, x):
        return self.layers["output"](self.layers["trunk"](x))


@pytest.mark.parametrize("labels", [4, 9, 30])
def test_a_wider_layer_keeps_the_real_labels_and_their_images(labels):
    shown = torch.tensor([0, 2, 5, 7]).repeat(5)
    pixels = torch.zeros(20, 3, 3, 3, dtype=torch.uint8)
    pixels.flatten(1)[torch.arange(20), shown] = 255
    clean = Images(pixels, shown)
    loaded = load(Net(), clean, preprocess="unit")
    # A live module is wrapped; a Keras file's network is not.
    bare = replace(loaded.network, module=Net().eval().requires_grad_(False))
    classifier = replace(loaded, network=bare)
    wide, some = speed_rows.widened(classifier, clean, labels, 0.1, seed=1)
    logits = wide.logits(some.pixels)
    assert logits.shape == (20, labels)
    assert wide.num_classes == labels
    # Classes 0, 2, 5 and 7 have images: they come first, the target before the others.
    assert torch.equal(some.labels, torch.tensor([0, 1, 2, 3]).repeat(5))
    assert torch.equal(logits[:, :4], classifier.logits(clean.pixels)[:, [0, 2, 5, 7]])
    again, _ = speed_rows.widened(classifier, clean, labels, 0.1, seed=1)
    assert torch.equal(again.logits(some.pixels), logits)
    assert classifier.module.layers["output"].out_features == 9, "the original stays"
