"""A fleet of real models in real processes: an answer for each, none twice, none lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
from conftest import JUNK

from goodnet.errors import GoodnetError
from goodnet.pipelines.fleet import fleet, model_files
from goodnet.pipelines.fleet_job import Job
from goodnet.reports import FleetReport, FleetResult


@pytest.fixture(scope="module")
def scanned(hub):
    """The hub's report, with its results in ``hub / "out"``."""
    return fleet(hub / "models", hub / "clean.npz", hub / "out", workers=2)


def test_each_model_gets_its_own_verdict_and_a_bad_file_stops_nobody(hub, scanned):
    rows = {row.name: row for row in scanned.rows}
    assert list(rows) == ["a.pt", JUNK, "more/a[1].pt", "planted.pt"]
    assert rows["planted.pt"].verdict == "backdoored"
    assert rows["planted.pt"].targets == [3]
    assert rows["a.pt"].verdict not in (None, "backdoored")
    assert rows["more/a[1].pt"].verdict not in (None, "backdoored")
    assert rows[JUNK].verdict is None
    assert rows[JUNK].error.startswith("M003")
    alone = FleetResult.model_validate_json((hub / "out" / "planted.pt.json").read_bytes())
    assert alone.report.targets == [3]
    assert FleetReport.model_validate_json((hub / "out" / "fleet.json").read_bytes()) == scanned


def test_nothing_is_done_twice(hub, scanned):
    seen = []

    def again():
        seen.clear()
        return fleet(
            hub / "models",
            hub / "clean.npz",
            hub / "out",
            progress=lambda _, done, total: seen.append((done, total)),
        )

    kept, damaged = hub / "out" / "planted.pt.json", hub / "out" / "a.pt.json"
    before = kept.stat().st_mtime_ns
    damaged.write_text("damaged")
    assert [row.verdict for row in again().rows] == [row.verdict for row in scanned.rows]
    assert seen == [(2, 4), (3, 4), (4, 4)], "what has failed, and what is damaged"
    assert kept.stat().st_mtime_ns == before
    assert FleetResult.model_validate_json(damaged.read_bytes()).report is not None


@pytest.mark.slow
def test_what_was_answered_before_an_interruption_is_there_afterwards(hub, scanned, tmp_path):
    """Each result is written as it comes, not when all are there."""
    out = tmp_path / "out"

    class PowerFailureError(Exception):
        pass

    def stop(stage, done, total):
        if done == 1:
            raise PowerFailureError

    models = hub / "models" / "more"
    listing = tmp_path / "list.txt"
    listing.write_text(f"{models / 'a[1].pt'}\n{hub / 'models' / 'a.pt'}\n")
    with pytest.raises(PowerFailureError):
        fleet(listing, hub / "clean.npz", out, workers=1, progress=stop)
    assert [path.name for path in out.iterdir()] == ["a[1].pt.json"]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_model_that_is_away_does_not_cost_its_answer(hub, scanned, tmp_path):
    out, share = tmp_path / "out", tmp_path / "share"
    shutil.copytree(hub / "out", out)
    before = (out / "a.pt.json").read_bytes()
    listing = share / "list.txt"
    share.mkdir()
    listing.write_text("a.pt\n")
    report = fleet(listing, hub / "clean.npz", out)
    assert report.rows[0].error.startswith("M001")
    assert (out / "a.pt.json").read_bytes() == before
    shutil.copy(hub / "models" / "a.pt", share / "a.pt")
    assert fleet(listing, hub / "clean.npz", out).rows[0].verdict == scanned.rows[0].verdict


def test_other_data_settings_or_weights_are_another_question():
    job = Job("a", "a.json", "/here/a.pt", "/here/d.npz", "1", "2")
    moved = replace(job, name="b", file="b.json", model="/there/b.pt2", data="/there/e.npz")
    assert moved.key == job.key
    others = [
        {"model_sha256": "3"},
        {"data_sha256": "3"},
        {"seed": 1},
        {"method": "neural-cleanse"},
        {"budget": 5.0},
        {"preprocess": "byte"},
        {"size": (8, 8)},
        {"architecture": "net.py:make"},
        {"architecture_sha256": "3"},
    ]
    assert len({replace(job, **other).key for other in others} | {job.key}) == len(others) + 1


def test_a_worker_that_is_killed_is_replaced(hub, tmp_path):
    killed = []

    def strike():
        limit = time.monotonic() + 60
        while not killed and time.monotonic() < limit:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)
                return
            time.sleep(0.05)

    striker = threading.Thread(target=strike)
    striker.start()
    report = fleet(hub / "models" / "more", hub / "clean.npz", tmp_path, workers=2)
    striker.join()
    assert killed
    assert [row.error for row in report.rows] == [None]
    assert all(row.verdict for row in report.rows)


def test_a_list_names_models_and_results_go_to_any_url(hub, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    listing = tmp_path / "list.txt"
    models = hub / "models"
    listing.write_text(f"# ours\n{models / 'a.pt'}\n\n{models / 'more/a[1].pt'}\ngone.pt2\n")
    report = fleet(listing, hub / "clean.npz", "memory://results/today")
    assert len({row.name for row in report.rows}) == 3, "two of the same name keep apart"
    assert [bool(row.verdict) for row in report.rows] == [True, True, False]
    assert report.rows[2].error.startswith("M001")
    files = fsspec.filesystem("memory")
    told = json.loads(files.cat_file("/results/today/fleet.json"))
    assert [row["verdict"] for row in told["rows"]] == [row.verdict for row in report.rows]
    assert sorted(path.rpartition("/")[2] for path in files.ls("/results/today", detail=False)) == [
        "a.pt.json",
        "a[1].pt.json",
        "fleet.json",
    ]


def test_what_cannot_work_is_told_before_anything_is_scanned(hub, tmp_path):
    for models, data, output, code in (
        (tmp_path / "none", hub / "clean.npz", tmp_path / "o", "M001"),
        (tmp_path, hub / "clean.npz", tmp_path / "o", "M001"),
        (hub / "clean.npz", hub / "clean.npz", tmp_path / "o", "M001"),
        (hub / "models", tmp_path / "none.npz", tmp_path / "o", "D001"),
        (hub / "models", hub / "clean.npz", hub / "clean.npz", "O001"),
    ):
        with pytest.raises(GoodnetError) as caught:
            fleet(models, data, output)
        assert caught.value.code == code
    assert not (tmp_path / "o").exists()
    listing = tmp_path / "fleet.json"
    listing.write_text(f"{hub / 'models' / 'a.pt'}\n")
    with pytest.raises(GoodnetError) as caught:
        fleet(listing, hub / "clean.npz", tmp_path)
    assert caught.value.code == "O003"
    assert listing.read_text().endswith("a.pt\n")
    with pytest.raises(GoodnetError) as caught:
        fleet(hub / "models", hub / "clean.npz", "nowhere://results")
    assert caught.value.code == "O001"
    assert len(model_files(hub / "models")) == 4


def test_names_that_no_file_system_has_end_no_fleet(hub, tmp_path):
    """Nor pipes, which would be waited for, nor devices, which never end."""
    os.mkfifo(tmp_path / "pipe.h5")
    deep = tmp_path.joinpath(*["d" * 60] * 4)
    deep.mkdir(parents=True)
    shutil.copy(hub / "models" / "a.pt", deep / "long.pt")
    lines = ["zero\0byte.pt", "n" * 300 + ".pt", "/dev/zero", "pipe.h5", str(deep / "long.pt")]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    report = fleet(tmp_path / "list.txt", hub / "clean.npz", tmp_path / "out")
    assert [bool(row.verdict) for row in report.rows] == [False] * 4 + [True]
    assert all(row.error.startswith("M001") for row in report.rows[:4])
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_link_that_leads_nowhere_is_told(hub, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gone.pt").symlink_to("nowhere.pt")
    report = fleet(tmp_path / "models", hub / "clean.npz", tmp_path / "out")
    assert [row.error.split(":")[0] for row in report.rows] == ["M001"]


def test_a_cluster_that_is_not_there_is_told(hub, tmp_path):
    """Nor Ray itself, where the extra is not installed."""
    with pytest.raises(GoodnetError) as caught:
        fleet(hub / "models", hub / "clean.npz", tmp_path, ray="127.0.0.1:1")
    assert caught.value.code == "R008"
