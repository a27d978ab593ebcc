"""A fleet of real models in real processes: an answer for each, none twice, none lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import JUNK

from goodnet.errors import GoodnetError
from goodnet.formats.place import Place
from goodnet.pipelines.fleet import _named, fleet, model_files
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
    here, there = (replace(job, architecture=f"/{where}/net.py:make") for where in ("a", "b"))
    assert here.key == there.key, "of that file the digest is known"
    others = [
        {"model_sha256": "3"},
        {"data_sha256": "3"},
        {"seed": 1},
        {"method": "neural-cleanse"},
        {"budget": 5.0},
        {"preprocess": "byte"},
        {"size": (8, 8)},
        {"architecture": "net.py:make"},
        {"architecture": "net.py:build"},
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


def test_no_result_takes_the_name_of_anothers_when_a_list_changes(tmp_path):
    """Or the one model's answer would be written over by the other's."""

    def files(*names):
        found = _named([tmp_path / name for name in names], tmp_path / "lists")
        return {path.relative_to(tmp_path).as_posix(): file for _, file, path in found}

    both = files("p/a.pt", "q/a.pt", "q/b.pt")
    assert len(set(both.values())) == 3
    assert files("q/b.pt", "q/a.pt", "p/a.pt") == both
    alone = files("q/a.pt")
    assert alone["q/a.pt"] not in (both["p/a.pt"], both["q/b.pt"])


def test_clean_images_beside_the_models_are_none(tmp_path):
    for name in ("a.h5", "clean.h5", "pictures/deep/data.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def found(data):
        return [path.name for path in model_files(tmp_path, tmp_path / data)]

    assert found("clean.h5") == ["a.h5", "data.h5"]
    assert found("pictures") == ["a.h5", "clean.h5"]
    assert len(found(".")) == 3, "a folder of images that the models lie in"


def test_paths_from_here_are_told_to_who_may_be_elsewhere(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(hub)
    report = fleet("models/more", "clean.npz", tmp_path)
    assert report.rows[0].error is None
    assert report.data == str(hub / "clean.npz")


def test_a_place_that_cannot_be_written_to_is_told_at_once(tmp_path):
    pytest.importorskip("fsspec")
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    Place(f"memory://{tmp_path.name}").check()
    with pytest.raises(GoodnetError) as caught:
        Place(f"zip://results::{tmp_path / 'old.zip'}").check()
    assert caught.value.code == "O001"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="its children are looked up there")
def test_a_fleet_that_is_killed_leaves_nobody_at_work(hub, tmp_path):
    """They would be at it beside those of the next run."""
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\n"
        "from goodnet.pipelines.fleet import fleet\n"
        "if __name__ == '__main__':\n"
        "    fleet(*sys.argv[1:], method='neural-cleanse', workers=1)\n"
    )
    places = [hub / "models" / "more", hub / "clean.npz", tmp_path / "out"]
    run = subprocess.Popen([sys.executable, str(script), *map(str, places)])

    def busy():
        """Seconds that its children have computed for, by process; a scan takes minutes."""
        found = {}
        for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            found[int(child)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    limit = time.monotonic() + 120
    while max(busy().values(), default=0.0) < 5.0 and time.monotonic() < limit:
        assert run.poll() is None, "it was done before it could be killed"
        time.sleep(0.1)
    children = list(busy())
    assert children
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    limit = time.monotonic() + 60
    while any(map(_alive, children)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(_alive, children))


def _alive(process):
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


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
