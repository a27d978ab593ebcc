"""A scan that was ended goes on where it stopped; one with a budget ends in time and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from goodnet.cli.options import parse_time
from goodnet.errors import GoodnetError
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.store import open_store
from goodnet.pipelines.load import load
from goodnet.pipelines.scan import scan
from goodnet.trigger import Trigger

LABELS = [0, 1, 2, 3, 4, 5]


class Watch:
    """Notes the progress; ends the run where it is told to."""

    def __init__(self, stage="", after=None):
        self.stage, self.after = stage, after
        self.first: dict[str, int] = {}

    def __call__(self, stage, done, total):
        self.first.setdefault(stage, done)
        if stage == self.stage and self.after is not None and done >= self.after:
            raise KeyboardInterrupt


def answer(report):
    return report.model_dump(exclude={"seconds"})


@pytest.fixture(scope="module")
def undisturbed(badnet):
    return scan(load(badnet.module, badnet.clean), badnet.clean, labels=LABELS, seed=4)


def test_an_ended_scan_goes_on_and_comes_to_the_same_answer(badnet, undisturbed, tmp_path):
    classifier, state = load(badnet.module, badnet.clean), tmp_path / "state"

    def go(watch):
        return scan(
            classifier, badnet.clean, labels=LABELS, seed=4, progress=watch, state=state, workers=1
        )

    with pytest.raises(KeyboardInterrupt):
        go(Watch("inverting triggers", 2))
    assert len(list(state.glob("*.safetensors"))) >= 4
    watch = Watch()
    report = go(watch)
    assert watch.first["measuring margins"] == len(LABELS), "nothing is measured twice"
    assert 2 <= watch.first["inverting triggers"] < len(LABELS)
    assert answer(report) == answer(undisturbed)
    for label, trigger in undisturbed.triggers.items():
        assert torch.equal(report.triggers[label].mask, trigger.mask)
        assert torch.equal(report.triggers[label].pattern, trigger.pattern)
    assert not state.exists(), "a scan that is done leaves nothing behind"


def test_what_belongs_to_another_scan_is_not_taken(badnet, tmp_path):
    classifier, state = load(badnet.module, badnet.clean), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        scan(
            classifier,
            badnet.clean,
            labels=LABELS,
            seed=4,
            progress=Watch("inverting triggers", 2),
            state=state,
        )
    watch = Watch("measuring margins", 2)
    with pytest.raises(KeyboardInterrupt):
        scan(classifier, badnet.clean, labels=LABELS, seed=5, progress=watch, state=state)
    assert watch.first["measuring margins"] == 0


def test_a_killed_scan_goes_on(badnet, tmp_path):
    """kill -9 in the middle of the inversion, as a power failure would."""
    model, data = tmp_path / "model.pt2", tmp_path / "clean.npz"
    shape = badnet.clean.shape
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.zeros(2, *shape)
    torch.export.save(
        torch.export.export(badnet.module, (example,), dynamic_shapes=({0: batch},)), model
    )
    pixels = badnet.clean.pixels.permute(0, 2, 3, 1).numpy()
    np.savez(data, images=pixels, labels=badnet.clean.labels.numpy())

    def command(folder):
        words = [sys.executable, "-m", "goodnet", "scan", model, "--data", data, "--seed", "3"]
        return [*map(str, words), "--workers", "1", "-o", str(tmp_path / folder)]

    blocks = tmp_path / "killed" / ".unfinished"
    run = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while len(list(blocks.glob("*.safetensors"))) < 14 and time.monotonic() < limit:
        assert run.poll() is None, "it was done before it could be killed"
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    left = len(list(blocks.glob("*.safetensors")))
    assert left >= 14
    assert not (tmp_path / "killed" / "scan.json").exists()
    for folder in ("killed", "whole"):
        done = subprocess.run(command(folder), capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert not (tmp_path / folder / ".unfinished").exists()
    reports = []
    for folder in ("killed", "whole"):
        told = json.loads((tmp_path / folder / "scan.json").read_text("utf-8"))
        reports.append({k: v for k, v in told.items() if k != "seconds"})
    assert reports[0] == reports[1]
    triggers = [
        (tmp_path / f / "scan.triggers.safetensors").read_bytes() for f in ("killed", "whole")
    ]
    assert triggers[0] == triggers[1]


def test_a_budget_is_kept_and_what_was_skipped_is_told(honest):
    classifier = load(honest.module, honest.clean)
    report = scan(classifier, honest.clean, seed=4, budget=0.5, workers=1)
    assert report.verdict == "inconclusive"
    assert report.settings["skipped"] == 12
    assert any("12 labels were skipped" in reason for reason in report.reasons)


def test_a_budget_that_suffices_changes_nothing(badnet, undisturbed, tmp_path):
    classifier = load(badnet.module, badnet.clean)
    report = scan(classifier, badnet.clean, labels=LABELS, seed=4, budget=600.0, state=tmp_path)
    assert answer(report) == answer(undisturbed)


def test_labels_skipped_for_want_of_time_are_measured_by_the_next_run(badnet, tmp_path):
    classifier, state = load(badnet.module, badnet.clean), tmp_path / "state"
    options = {"labels": LABELS, "seed": 4, "state": state, "workers": 1}
    first = scan(classifier, badnet.clean, budget=0.4, **options)
    assert first.settings["skipped"]
    assert state.exists()
    second = scan(classifier, badnet.clean, **options)
    assert second.settings["skipped"] == 0
    assert not state.exists()


def test_stored_blocks_come_back_exactly_and_damaged_ones_not_at_all(tmp_path):
    generator = torch.Generator().manual_seed(0)
    triggers = {
        label: tuple(
            Trigger(
                torch.rand(1, 5, 4, generator=generator),
                torch.rand(3, 5, 4, generator=generator),
                label,
                family,
            )
            for family in ("additive", "patch", "additive")
        )
        for label in (7, 12)
    }
    evidence = Evidence({7: (0.1, 1 / 3, -2.5e-9), 12: (1e30,)}, triggers)
    store = open_store(tmp_path / "state", "one")
    store.put("block", evidence)
    back = open_store(tmp_path / "state", "one").get("block")
    assert back.values == evidence.values
    assert set(back.triggers) == {7, 12}
    for label, row in triggers.items():
        for mine, its in zip(row, back.triggers[label], strict=True):
            assert torch.equal(mine.pattern, its.pattern)
            assert torch.equal(mine.mask, its.mask)
            assert (mine.target, mine.family) == (its.target, its.family)
    assert store.get("another block") is None
    (path,) = (tmp_path / "state").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert store.get("block") is None
    path.write_bytes(b"\x80\x04nonsense")
    assert store.get("block") is None
    open_store(tmp_path / "state", "two")
    assert not path.exists()


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
