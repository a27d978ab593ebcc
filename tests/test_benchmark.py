"""The benchmark's own rules: a fixed split, every attack on both sides, honest figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goodnet.attacks.networks import ARCHITECTURES
from goodnet.attacks.table import ATTACKS, option_names

HERE = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))

import records  # noqa: E402 - the benchmark is a folder of programs, not a package
import table  # noqa: E402 - its folder is put on the path first
import table_repair  # noqa: E402 - its folder is put on the path first
import zoo  # noqa: E402 - its folder is put on the path first


def test_the_zoo_is_large_and_every_attack_is_on_both_sides():
    setups = zoo.setups()
    assert len(setups) >= 30
    assert sum(len(setup.attacks) for setup in setups) >= 60
    assert {setup.recipe.architecture for setup in setups} == set(ARCHITECTURES)
    assert {setup.data for setup in setups} == {"mnist", "signs", "gtsrb", "cifar10", "lfw"}
    for split in ("test", "calibration"):
        kinds = {
            zoo.attack_options(attack, setup.data)[0]
            for setup in setups
            if setup.split == split
            for attack in setup.attacks
        }
        assert kinds == {name.removesuffix("-clean") for name in zoo.description()["attack"]}


def test_no_two_models_share_a_seed_and_no_model_has_two_splits():
    setups = zoo.setups()
    assert len({(setup.data, setup.recipe.seed) for setup in setups}) == len(setups)
    names = [model for setup in setups for model in setup.models()]
    assert len(set(names)) == len(names)


def test_attacks_and_their_options_exist():
    for name in zoo.description()["attack"]:
        for data in zoo.description()["data"]:
            kind, options = zoo.attack_options(name, data)
            assert set(options) <= set(option_names(kind)), name
    assert set(ATTACKS) == {zoo.attack_options(n, "mnist")[0] for n in zoo.description()["attack"]}


@pytest.mark.parametrize("split", ["test", "calibration"])
def test_the_small_subset_is_as_large_as_promised(split):
    small = [setup for setup in zoo.setups() if setup.small and setup.split == split]
    assert len(small) >= 8
    assert sum(len(setup.attacks) for setup in small) >= 16
    assert len({attack for setup in small for attack in setup.attacks}) >= 10


def test_the_quick_benchmark_never_looks_at_the_test_models():
    lines = (HERE.parent / "Makefile").read_text("utf-8").split("bench-small: setup")[1]
    programs = [line for line in lines.splitlines() if "benchmarks/" in line]
    assert len(programs) == 3
    assert all("--split calibration" in line for line in programs)


def test_auroc_counts_pairs_and_halves_ties():
    assert records.auroc([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert records.auroc([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert records.auroc([0.0, 1.0, 2.0, 3.0], [1.0]) == pytest.approx((1 + 0.5) / 4)
    assert records.auroc([], [1.0]) is None


@pytest.mark.parametrize(("folder", "least"), [(records.RESULTS, 50), (records.ELSEWHERE, 10)])
def test_every_record_is_of_a_model_that_took_its_attack_with_these_weights(folder, least):
    known = records.truths(folder)
    paths = [p for p in folder.glob("*/*.json") if p.parent.name != "speed"]
    assert len(paths) >= least
    for path in paths:
        record = json.loads(path.read_text("utf-8"))
        truth = known[record["model"]]
        assert truth["passes"], path
        earlier = path.parent.name.endswith("-run")
        method = "default" if earlier else path.parent.name
        assert method == record["method"]
        assert record.get("weights_sha256") == truth["weights_sha256"], path
        assert record["commit"], path


def test_the_published_tables_are_made_from_the_records(tmp_path):
    """RESULTS.md is generated: nobody has changed a figure by hand, or forgot to make it again."""
    known = records.truths(records.RESULTS)
    text = (HERE / "RESULTS.md").read_text("utf-8")
    found = records.records(records.RESULTS, known, "test")
    expected = sum(t["split"] == "test" and t["passes"] for t in known.values())
    assert table.overall(found, expected) in text
    assert table.each_method(found) in text
    assert (HERE / "closing.md").read_text("utf-8") in text
    others = table.beside_others(records.RESULTS, known)
    assert "TrojanZoo" in others[1]
    assert all(part in text for part in others)


def test_networks_of_other_weights_stand_in_tables_of_their_own():
    """The same names with other weights: nothing of one may be held against the other."""
    here, there = records.truths(records.RESULTS), records.truths(records.ELSEWHERE)
    assert all(there[m]["weights_sha256"] != here[m]["weights_sha256"] for m in there)
    told = table.elsewhere(records.ELSEWHERE)
    text = (HERE / "HISTORY.md").read_text("utf-8")
    assert "BackdoorMBTI" in told[1]
    assert all(part in text for part in told)
    assert table.elsewhere(records.RESULTS / "none") == []


def test_known_results_are_published_as_those_of_retired_models():
    """A model that was looked at while the detector was made tells nothing of the detector."""
    known = records.truths(records.RESULTS)
    retired = {name for name, truth in known.items() if truth["split"] == "retired"}
    assert len(retired) >= 50
    early, late = ("first", "second", "third"), ("seventh", "eighth", "ninth", "tenth")
    for run in (f"{number}-run" for number in (*early, *late)):
        assert {path.stem for path in (records.RESULTS / run).glob("*.json")} <= retired
    for run in ("fourth-run", "fifth-run", "sixth-run", "default"):
        assert not {p.stem for p in (records.RESULTS / run).glob("*.json")} & retired
    text = (HERE / "HISTORY.md").read_text("utf-8")
    told = table.earlier(records.RESULTS, known, "test")
    assert all(part in text for part in told)
    assert "more reference models" in told[1]
    assert "several kinds of evidence" in told[3]
    assert "beside others" in told[5]
    assert "before targets that stand out together" in told[7]
    assert "third run" in told[9]
    assert "second run" in told[11]
    assert not any(part in (HERE / "RESULTS.md").read_text("utf-8") for part in told[1::2])


def repaired(attack, accuracy, after=0.9):
    figures = {"accuracy_before": 0.9, "attack_before": 1.0, "accuracy_after": accuracy}
    return figures | {"attack_after": attack, "recovered_after": after, "seconds": 2.0}


def test_repairs_stand_side_by_side_by_their_means_and_their_worst():
    rows = {"goodnet": repaired(0.0, 0.9), "fine-tuning": repaired(0.5, 0.8)}
    rows |= {"fine-pruning": {"error": "no"}, "unlearning": repaired(1.0, 0.9)}
    other = rows | {"goodnet": repaired(0.1, 0.95)}
    found = [{"shares": {"0.01": {"repairs": part}}} for part in (rows, other)]
    lines = {line[1]: line for line in table_repair.comparison(found)}
    assert lines["goodnet"] == [
        *("1%", "goodnet", "2", "+0.025", "+0.000", "0.050", "0.100", "0.900", "0.975", "2.0")
    ]
    # No credit for accuracy that rose: (1 - .9 + 1) / 2 of the first, (.9 + 1) / 2 of the second.
    assert table_repair.effectiveness(repaired(0.1, 0.95)) == pytest.approx(0.95)
    assert table_repair.effectiveness(repaired(0.5, 0.8)) == pytest.approx(0.7)
    assert "fine-pruning" not in lines
    assert table_repair.comparison([]) == []


def row(name, attack, targets, verdict=None, named=(), statistic=0.0):
    truth = {"attack_name": attack, "targets": list(targets), "num_classes": 10}
    truth |= {"data": "mnist", "recipe": {"architecture": "cnn"}}
    if verdict is None:
        return {"model": name, "error": "no", "truth": truth}
    said = {"verdict": verdict, "targets": list(named), "statistic": statistic}
    figures = {"seconds": 1.0, "seconds_per_label": 0.1, "peak_memory_mb": 100.0}
    return {"model": name, "truth": truth, **said, **figures}


def test_a_failed_run_is_an_error_and_not_a_clean_model():
    rows = [
        row("a", "patch", [3], "backdoored", [3, 4], 5.0),
        row("b", "patch", [3]),
        row("c", None, [], "clean", [], 1.0),
    ]
    line = table.overall({"default": rows}, 3).splitlines()[2]
    assert "| 2 of 3 | 1/1 " in line
    assert "| 0/1 " in line
    assert "| 1.00 |" in line
    assert "b" in table.failures({"default": rows})


def test_missed_targets_and_labels_named_on_clean_models_count():
    rows = [
        row("a", "patch", [3], "backdoored", [3, 4]),
        row("b", "patch", [5], "clean"),
        row("c", None, [], "backdoored", [7]),
        row("d", "all-to-all", range(10), "backdoored", [1, 2, 3]),
    ]
    assert records.labels_named(rows) == (1, 3, 2)


def test_networks_are_ranked_against_clean_networks_of_their_own_kind():
    easy, hard = row("a", "patch", [3], "clean", [], 2.0), row("b", None, [], "clean", [], 1.0)
    other = row("c", None, [], "clean", [], 9.0)
    other["truth"]["recipe"] = {"architecture": "vit"}
    rows = [easy, hard, other]
    assert "| cnn | 0/1 (0.00-0.97) | 1.00 |" in table.breakdown(rows, "network")
    assert "| patch | 0/1 (0.00-0.97) | 0.50 |" in table.breakdown(rows, "attack")


def test_a_record_of_other_weights_is_refused(tmp_path):
    folder = tmp_path / "default"
    folder.mkdir()
    record = {"model": "m", "method": "default", "weights_sha256": "old"}
    (folder / "m.json").write_text(json.dumps(record))
    known = {"m": {"split": "test", "passes": True, "weights_sha256": "new"}}
    with pytest.raises(ValueError, match="other weights"):
        records.records(tmp_path, known, "test")


def test_what_is_measured_may_use_all_of_the_processor():
    """Training keeps its process to AVX2: peers and scans that came from one would be slower."""
    others = [path.stem for path in HERE.glob("*.py") if path.stem != "train"]
    ask = f"import sys, os; before = dict(os.environ); import {', '.join(others)}"
    ask += "; changed = set(os.environ.items()) - set(before.items())"
    ask += "; raise SystemExit('train' in sys.modules or 'ATEN_CPU_CAPABILITY' in dict(changed))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=HERE, check=False)
    assert done.returncode == 0
    lazily = [path.name for path in HERE.glob("*.py") if "from train import" in path.read_text()]
    assert lazily == []


def maker() -> str:
    """Who made the processor, as Linux tells it; "" elsewhere."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor")), "")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_by", "split", "name", "folder"),
    [
        # On one without AVX-512.
        ("AuthenticAMD", "retired", "mnist-cnn-211", records.ELSEWHERE),
        ("AuthenticAMD", "test", "mnist-cnn-616", records.RESULTS),
        ("GenuineIntel", "retired", "mnist-cnn-516", records.RESULTS),
    ],
)
def test_another_processor_of_that_maker_trains_the_same_weights(
    tmp_path, shared, made_by, split, name, folder
):
    """Records can be added to wherever one is."""
    if maker() != made_by:
        pytest.skip(f"the weights were trained on a processor by {made_by}")
    command = [sys.executable, str(HERE / "train.py"), "--split", split, "--clean"]
    command += ["--only", name, "-o", str(tmp_path), "--workers", "1"]
    subprocess.run(command, check=True)
    weights = tmp_path / f"{name}.clean" / "weights.safetensors"
    known = records.truths(folder)[f"{name}.clean"]
    assert records.checksum(weights) == known["weights_sha256"]


@pytest.mark.real
def test_nobody_sees_what_another_should_not(shared):
    for data in ("mnist", "gtsrb", "cifar10", "lfw"):
        shown = zoo.pictures(data, 11)
        other = zoo.pictures(data, 11, "calibration")
        assert torch.equal(shown.judge.pixels, other.judge.pixels)
        assert torch.equal(shown.training.pixels, other.training.pixels)
        if data != "lfw":
            theirs = {row.numpy().tobytes() for row in other.defender.pixels}
            both = (shown.defender, shown.judge)
            assert not theirs & {r.numpy().tobytes() for part in both for r in part.pixels}
        sets = [
            {row.numpy().tobytes() for row in part.pixels}
            for part in (shown.training, shown.defender, shown.judge)
        ]
        # A photograph that the data set holds twice is the data set's fault; there are few.
        assert len(sets[1] & sets[2]) == 0
        assert len(sets[0] & (sets[1] | sets[2])) <= 2
        assert len(shown.defender) <= zoo.AT_MOST
        assert len(shown.judge) >= 300
