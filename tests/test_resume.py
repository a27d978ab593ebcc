"""A scan that was ended goes on where it stopped; one with a budget ends in time and says so."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.store import open_store
from goodnet.images import Images
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
    assert len(list(state.glob("*.block"))) >= 4
    watch = Watch()
    report = go(watch)
    report.forget()
    assert watch.first["measuring margins"] == len(LABELS), "nothing is measured twice"
    assert 2 <= watch.first["inverting triggers"] < len(LABELS)
    assert answer(report) == answer(undisturbed)
    for label, trigger in undisturbed.triggers.items():
        assert torch.equal(report.triggers[label].mask, trigger.mask)
        assert torch.equal(report.triggers[label].pattern, trigger.pattern)
    assert not state.exists(), "a scan that is done leaves nothing behind"


def interrupted(classifier, images, state, **options):
    """Leaves the blocks of an unfinished scan in ``state``."""
    with pytest.raises(KeyboardInterrupt):
        scan(
            classifier,
            images,
            labels=LABELS,
            seed=4,
            progress=Watch("measuring margins", len(LABELS)),
            state=state,
            **options,
        )


def begins_anew(classifier, images, state, seed=4):
    watch = Watch("measuring margins", 1)
    with pytest.raises(KeyboardInterrupt):
        scan(classifier, images, labels=LABELS, seed=seed, progress=watch, state=state)
    return watch.first["measuring margins"] == 0


def test_what_belongs_to_another_scan_is_not_taken(badnet, honest, tmp_path):
    classifier, images = load(badnet.module, badnet.clean), badnet.clean
    interrupted(classifier, images, tmp_path)
    assert not begins_anew(classifier, images, tmp_path)
    assert begins_anew(classifier, images, tmp_path, seed=5)
    assert begins_anew(load(honest.module, images), images, tmp_path)
    # In memory, neither has a checksum of its own.
    others = images.select(torch.arange(10, len(images)))
    assert others.sha256 == images.sha256 == ""
    assert begins_anew(classifier, others, tmp_path)
    # A repaired copy carries the checksum of the file that it came from.
    copy = classifier.copy()
    with torch.no_grad():
        next(copy.module.parameters()).mul_(1.0001)
    assert copy.sha256 == classifier.sha256
    assert begins_anew(copy, images, tmp_path)


def test_nothing_but_this_scans_blocks_is_removed(badnet, tmp_path):
    classifier, images = load(badnet.module, badnet.clean), badnet.clean
    weights, notes = tmp_path / "mine.safetensors", tmp_path / "scan.txt"
    weights.write_bytes(b"mine")
    notes.write_text("mine")
    interrupted(classifier, images, tmp_path)
    left = set(tmp_path.iterdir())
    report = scan(classifier, images, labels=[0, 1, 2], seed=4, state=tmp_path)
    report.forget()
    assert set(tmp_path.iterdir()) == left, "the blocks of the larger scan are there as before"
    scan(classifier, images, labels=LABELS, seed=4, state=tmp_path).forget()
    assert set(tmp_path.iterdir()) == {weights, notes}
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(GoodnetError) as caught:
        scan(classifier, images, labels=LABELS, seed=4, state=link)
    assert caught.value.code == "O001"


class Templates(nn.Module):
    """Each class is a pattern; an image belongs to the one that it is most like."""

    def __init__(self, patterns):
        super().__init__()
        self.patterns = nn.Parameter(patterns.flatten(1) - patterns.mean())

    def forward(self, x):
        return x.flatten(1) @ self.patterns.T


def test_the_ranking_of_many_classes_goes_on_too(tmp_path):
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(80, 3, 8, 8, generator=generator)
    pixels = (patterns.repeat(3, 1, 1, 1) * 255).round().byte()
    images = Images(pixels, torch.arange(80).repeat(3))
    classifier = load(Templates(patterns), images, preprocess="unit")
    options = {"seed": 1, "workers": 1}
    whole = scan(classifier, images, **options)
    with pytest.raises(KeyboardInterrupt):
        scan(
            classifier,
            images,
            progress=Watch("ranking all labels", 40),
            state=tmp_path / "state",
            **options,
        )
    watch = Watch()
    report = scan(classifier, images, progress=watch, state=tmp_path / "state", **options)
    assert 40 <= watch.first["ranking all labels"] < 80
    assert answer(report) == answer(whole)
    assert len(whole.labels) == 80


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
        words += ["--labels", "0,1,2", "--workers", "1", "-o", tmp_path / folder]
        return [*map(str, words)]

    def finished():
        return list((tmp_path / "killed" / ".unfinished").glob("[!.]*.block"))

    run = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while len(finished()) < 5 and time.monotonic() < limit:
        assert run.poll() is None, "it was done before it could be killed"
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert len(finished()) >= 5
    assert not (tmp_path / "killed" / "scan.json").exists()
    for folder in ("killed", "whole"):
        done = subprocess.run(command(folder), capture_output=True, text=True, check=False)
        # 2 is "undecided", which a scan of so few labels may be.
        assert done.returncode in (1, 2), done.stderr
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


def test_a_budget_that_suffices_changes_nothing(badnet, undisturbed, tmp_path):
    classifier = load(badnet.module, badnet.clean)
    report = scan(classifier, badnet.clean, labels=LABELS, seed=4, budget=600.0, state=tmp_path)
    assert answer(report) == answer(undisturbed)


def test_labels_skipped_for_want_of_time_are_measured_by_the_next_run(
    badnet, undisturbed, tmp_path
):
    classifier, state = load(badnet.module, badnet.clean), tmp_path / "state"
    options = {"labels": LABELS, "seed": 4, "state": state, "workers": 1}
    # The margins are there already, and there is no time for a single mask.
    interrupted(classifier, badnet.clean, state)
    first = scan(classifier, badnet.clean, budget=0.001, **options)
    first.forget()
    assert first.verdict == "inconclusive"
    assert first.settings["skipped"]
    assert state.exists(), "what was measured is for the next run"
    second = scan(classifier, badnet.clean, **options)
    assert answer(second) == answer(undisturbed)


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
    assert open_store(tmp_path / "state", "two").get("block") is None
    (path,) = (tmp_path / "state").glob("*.block")
    whole = path.read_bytes()
    for damage in (whole[:-9], b"\x80\x04nonsense", b""):
        path.write_bytes(damage)
        assert store.get("block") is None
    bare = torch.zeros(3)
    for tensors, values in (
        ({"odd": bare}, "{}"),
        ({}, "[1]"),
        ({}, '{"7": [[1]]}'),
        ({"a/patch/7/mask": bare, "a/patch/7/pattern": bare.clone()}, "{}"),
    ):
        path.write_bytes(save(tensors, {"values": values}))
        assert store.get("block") is None, values


def test_what_a_kill_left_half_written_goes_with_the_rest(tmp_path):
    dies = """
import os, signal, sys
from pathlib import Path
from goodnet.evidence.evidence import Evidence
from goodnet.evidence.store import open_store

def half(path, content):
    with path.open("wb") as stream:
        stream.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

store = open_store(Path(sys.argv[1]), "one")
store.put("first", Evidence({1: (1.0,)}, {}))
Path.write_bytes = half
store.put("second", Evidence({2: (1.0,)}, {}))
"""
    state = tmp_path / "state"
    run = subprocess.run([sys.executable, "-c", dies, str(state)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(list(state.iterdir())) == 2
    store = open_store(state, "one")
    assert store.get("first") is not None
    assert store.get("second") is None
    open_store(state, "two").remove()
    assert len(list(state.iterdir())) == 2, "another scan's are none of its business"
    store.remove()
    assert not state.exists()


def test_a_block_of_other_labels_or_sizes_is_measured_again(badnet, tmp_path):
    """A forged or mixed-up block must not end up in the report, nor stop the scan."""
    classifier, images = load(badnet.module, badnet.clean), badnet.clean
    interrupted(classifier, images, tmp_path)
    blocks = sorted(tmp_path.glob("*.block"))
    shape = classifier.input_shape
    wrong = Trigger(torch.zeros(1, 5, 5), torch.zeros(3, 5, 5), 0, "additive")
    endless = Trigger(torch.zeros(1, *shape[1:]), torch.full(shape, torch.nan), 0, "additive")
    labels = json.loads(_values(blocks[0]))
    for forgery in (
        Evidence({11: (99.0, 99.0, 99.0)}, {}),
        Evidence({}, {0: (wrong,)}),
        Evidence({}, {0: (endless,)}),
        *(
            Evidence({int(label): row for label in labels}, {})
            for row in ((), (1.0,), (1.0, math.nan, 1.0), (1.0, 1.0, math.inf))
        ),
    ):
        forged = open_store(tmp_path, "forged")
        forged.put("block", forgery)
        (mine,) = set(tmp_path.glob("*.block")) - set(blocks)
        for block in blocks:
            block.write_bytes(mine.read_bytes())
        forged.remove()
        assert begins_anew(classifier, images, tmp_path), forgery


def _values(block):
    with safe_open(str(block), framework="pt") as file:
        return file.metadata()["values"]
