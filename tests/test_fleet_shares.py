"""A model with many labels, measured by several workers: one report, that of a single scan."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_case import save_data, save_model
from fleet_case import answer, patterns, result_of, same
from test_resume import Templates
from torch import nn

from goodnet import __version__
from goodnet.errors import GoodnetError
from goodnet.evidence import Share
from goodnet.evidence.stimulation import STAGE
from goodnet.formats.files import sha256
from goodnet.images import Images
from goodnet.inversion import QUICK
from goodnet.pipelines import placing
from goodnet.pipelines import scan as scanning
from goodnet.pipelines.fleet import UNFINISHED, fleet
from goodnet.pipelines.fleet_job import Job, Shared, do, failed
from goodnet.pipelines.fleet_shares import ROUNDS, answers
from goodnet.pipelines.load import load
from goodnet.pipelines.scan import measure_share, scan


class Watch:
    """Adds up how many labels each stage finds measured already, and how many it measures."""

    def __init__(self):
        self.found, self.last = {}, {}

    def __call__(self, stage, done, total):
        self.found.setdefault(stage, (done, total))
        self.last[stage] = done


@pytest.mark.parametrize(
    ("method", "classes", "rounds"), [("default", 80, 4), ("neural-cleanse", 12, 1)]
)
def test_shares_make_the_report_of_one_scan_and_measure_nothing_twice(
    method, classes, rounds, tmp_path, monkeypatch
):
    monkeypatch.setattr(scanning, "PAPER", replace(QUICK, epochs=2))
    shown = patterns(classes)
    images = Images(
        (shown.repeat(3, 1, 1, 1) * 255).round().byte(), torch.arange(classes).repeat(3)
    )
    classifier = load(Templates(shown), images, preprocess="unit")
    whole = scan(classifier, images, method=method, workers=1)
    written = []
    waiting, turns = [0, 1, 2], 0
    while waiting:
        turns, again = turns + 1, []
        for index in waiting:
            before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.block")}
            share = Share(index, 3)
            if not measure_share(classifier, images, share, tmp_path, method=method, workers=1):
                again.append(index)
            after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.block")}
            assert before.items() <= after.items(), "nothing is written twice"
            written.append(len(after) - len(before))
        assert turns <= rounds
        waiting = again
    assert min(written) > 0, "no worker came for nothing"
    watch = Watch()
    report = scan(classifier, images, method=method, workers=1, state=tmp_path, progress=watch)
    assert answer(report) == answer(whole)
    # Of the whole model, and done by the last task.
    of_all = ("looking for a permutation of the classes", "changing images a little")
    of_all += ("trying colour filters", STAGE)
    stages = {stage: found for stage, found in watch.found.items() if stage not in of_all}
    assert stages
    assert all(done == total for done, total in stages.values()), stages
    for label, trigger in whole.triggers.items():
        assert torch.equal(report.triggers[label].mask, trigger.mask)


def job(name="a"):
    return Job(name, f"{name}.json", f"/{name}.pt", "/d.npz", "1", "2")


def told(task, error="R006"):
    """A result; which one does not matter here."""
    return failed(task.job, GoodnetError(error, "told", "none"))


def worked(jobs, do):
    """The jobs' results, and the tasks in the order in which they were done."""
    done = []

    def workforce(queue):
        while queue:
            task = queue.popleft()
            done.append(task)
            yield task, do(task)

    results = list(answers(jobs, workforce))
    return results, [(t.job.name, t.share, t.shares) for t in done], done


def test_shares_wait_for_each_other_and_the_last_task_concludes():
    rounds = {}

    def do(task):
        if task.job.name == "small":
            return told(task)
        if task.share == 3:
            return told(task)
        if task.shares == 0:
            return Shared(shares=3, done=False, seconds=1.5)
        rounds[task.share] = rounds.get(task.share, 0) + 1
        return Shared(shares=3, done=rounds[task.share] == (3 if task.share else 2), seconds=1.5)

    results, order, tasks = worked([job("large"), job("small")], do)
    assert [j.name for j, _ in results] == ["large", "small"]
    one_round, last = [("large", n, 3) for n in range(3)], [("large", 1, 3), ("large", 2, 3)]
    rest = [("large", 3, 3), ("small", 0, 0)]
    assert order == [("large", 0, 0), *one_round, *one_round, *last, *rest]
    assert tasks[-2].spent == 9 * 1.5


def test_shares_that_never_settle_are_concluded_all_the_same():
    def do(task):
        return told(task) if task.share == 2 else Shared(shares=2, done=False, seconds=1.0)

    results, order, _ = worked([job()], do)
    assert len(results) == 1
    assert len(order) == 1 + 2 * ROUNDS + 1
    assert order[-1] == ("a", 2, 2)


def test_a_share_that_fails_ends_its_model_and_no_other():
    def do(task):
        if task.job.name == "bad" and task.share == 1:
            return told(task, "R007")
        return told(task) if task.share == 4 else Shared(shares=4, done=True, seconds=1.0)

    results, order, _ = worked([job("bad"), job("good")], do)
    assert [(j.name, r.error_code) for j, r in results] == [("bad", "R007"), ("good", "R006")]
    assert order[:4] == [("bad", 0, 0), ("bad", 0, 4), ("bad", 1, 4), ("good", 0, 0)]


class Kernels(nn.Module):
    """Each class is a pattern, compared by a convolution: bfloat16 suits it where it is had."""

    def __init__(self, shown):
        super().__init__()
        classes, channels, *side = shown.shape
        self.last = nn.Conv2d(channels, classes, side, bias=False)
        self.last.weight.data.copy_(shown - shown.mean())

    def forward(self, x):
        return self.last(x).flatten(1)


def test_machines_with_and_without_bfloat16_have_use_for_each_others_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "PAPER", replace(QUICK, epochs=2))
    shown = patterns(40)
    model, data = tmp_path / "many.pt", tmp_path / "clean.npz"
    save_model(model, Kernels(shown))
    pixels = (shown.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    save_data(data, pixels, np.arange(40))
    its, told, state = Job("many", "many.json", str(model), str(data), "", ""), [], tmp_path / "s"
    its = replace(
        its, model_sha256=sha256(model), data_sha256=sha256(data), method="neural-cleanse"
    )
    state.mkdir()
    keys = set()

    def machines(queue):
        while queue:
            task = queue.popleft()
            # Every other one has a processor that is quick at it.
            quick = bool(task.share % 2)
            monkeypatch.setattr(placing, "_has_half", lambda device, quick=quick: quick)
            answered = do(task, state, one_machine=False)
            keys.update(path.name.split("-")[0] for path in state.glob("*.block"))
            told.append(task.share)
            yield task, answered

    ((_, result),) = answers([its], machines)
    assert result.error is None
    assert told == [0, 0, 1, 2, 3], "three shares, and the report"
    assert len(keys) == 1, "what one has measured counts as another scan's elsewhere"
    assert result.report.settings["gradients"] == "float32"


@pytest.mark.slow
def test_a_worker_that_is_killed_at_its_share_is_replaced(many, alone, tmp_path):
    out, killed = tmp_path / "out", []

    def strike():
        limit = time.monotonic() + 300
        while not killed and time.monotonic() < limit:
            children = multiprocessing.active_children()
            # Some blocks of the model are there, and two are at work on others.
            if len(children) == 2 and len(list(out.rglob("*.block"))) > 2:
                os.kill(children[-1].pid, signal.SIGKILL)
                killed.append(children[-1].pid)
            time.sleep(0.02)

    striker = threading.Thread(target=strike)
    striker.start()
    report = fleet(many / "models", many / "clean.npz", out, workers=2)
    striker.join()
    assert killed
    assert report.rows[0].error is None
    assert same(result_of(out), alone)
    assert result_of(out).report.version == __version__
    assert not (out / UNFINISHED).exists()


@pytest.mark.slow
def test_what_shares_have_measured_is_there_after_an_interruption(many, alone, tmp_path):
    out = tmp_path / "out"

    class PowerFailureError(Exception):
        pass

    def strike():
        limit = time.monotonic() + 300
        while len(list(out.rglob("*.block"))) < 3 and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    def fail(*_):
        raise PowerFailureError

    before = signal.signal(signal.SIGUSR1, fail)
    striker = threading.Thread(target=strike)
    try:
        striker.start()
        with pytest.raises(PowerFailureError):
            fleet(many / "models", many / "clean.npz", out, workers=1)
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, before)
    assert not multiprocessing.active_children()
    blocks = {path: path.stat().st_mtime_ns for path in out.rglob("*.block")}
    assert len(blocks) >= 3
    assert not (out / "many.pt.json").exists()
    changed = []

    def watch(stop):
        while not stop.wait(0.02):
            for path, when in blocks.items():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime_ns != when:
                        changed.append(path)

    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,))
    watcher.start()
    fleet(many / "models", many / "clean.npz", out, workers=1)
    stop.set()
    watcher.join()
    assert not changed, "nothing is measured twice"
    assert same(result_of(out), alone)
    assert not (out / UNFINISHED).exists()
