"""The benchmark's own rules: a fixed split, every attack on both sides, honest figures."""

import json
import sys
from pathlib import Path

import pytest

from goodnet.attacks.networks import ARCHITECTURES
from goodnet.attacks.table import ATTACKS, option_names

HERE = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))

import table  # noqa: E402 - the benchmark is a folder of programs, not a package
import zoo  # noqa: E402


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
    assert len({setup.recipe.seed for setup in setups}) == len(setups)
    names = [model for setup in setups for model in setup.models()]
    assert len(set(names)) == len(names)


def test_attacks_and_their_options_exist():
    for name in zoo.description()["attack"]:
        for data in zoo.description()["data"]:
            kind, options = zoo.attack_options(name, data)
            assert set(options) <= set(option_names(kind)), name
    assert set(ATTACKS) == {zoo.attack_options(n, "mnist")[0] for n in zoo.description()["attack"]}


def test_the_small_subset_is_as_large_as_promised():
    small = [setup for setup in zoo.setups() if setup.small]
    assert all(setup.split == "test" for setup in small)
    assert len(small) >= 8
    assert sum(len(setup.attacks) for setup in small) >= 16


def test_auroc_counts_pairs_and_halves_ties():
    assert table.auroc([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert table.auroc([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert table.auroc([0.0, 1.0, 2.0, 3.0], [1.0]) == pytest.approx((1 + 0.5) / 4)
    assert table.auroc([], [1.0]) is None


def test_every_record_is_of_a_model_that_took_its_attack():
    known = table.truths(table.RESULTS)
    for path in table.RESULTS.glob("*/*.json"):
        record = json.loads(path.read_text("utf-8"))
        assert known[record["model"]]["passes"], path
        assert path.parent.name == record["method"]


def test_a_failed_run_is_an_error_and_not_a_clean_model():
    truth = {"attack_name": "patch", "targets": [3], "num_classes": 10}
    done = {"verdict": "backdoored", "statistic": 5.0, "targets": [3, 4], "truth": truth}
    failed = {"error": "no", "truth": truth}
    clean = {
        "verdict": "clean",
        "statistic": 1.0,
        "targets": [],
        "truth": truth | {"attack_name": None, "targets": []},
    }
    row = table.detection_row("x", [done, failed], [clean])
    assert row[1].startswith("1/1 ")
    assert row[2] == "1.00"
    assert row[3].startswith("1/2 ")
    assert row[4].startswith("1/1 ")
    assert row[5] == "1"


@pytest.mark.real
def test_nobody_sees_what_another_should_not(shared):
    for data in ("mnist", "gtsrb", "cifar10", "lfw"):
        shown = zoo.pictures(data, 11)
        sets = [
            {row.numpy().tobytes() for row in part.pixels}
            for part in (shown.training, shown.defender, shown.judge)
        ]
        # A photograph that the data set holds twice is the data set's fault; there are few.
        assert len(sets[1] & sets[2]) == 0
        assert len(sets[0] & (sets[1] | sets[2])) <= 2
        assert len(shown.defender) <= zoo.AT_MOST
        assert len(shown.judge) >= 300
