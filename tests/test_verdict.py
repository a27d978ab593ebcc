"""The decision: what is named, with which p-value, and when nothing may be said."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from goodnet import tables, verdict
from goodnet.ahead import LEADS
from goodnet.calibration import maxima
from goodnet.doubts import doubts
from goodnet.findings import Findings
from goodnet.looks import looks
from goodnet.scores import Scores
from goodnet.verdict import decide


def scores(values: list[float] | np.ndarray) -> Scores:
    values = np.asarray(values, dtype=np.float64)
    nothing = np.full(len(values), np.nan)
    nought = np.zeros(len(values))
    rows = [values, nothing, values, values, *[nothing] * 3, *[nought] * 3]
    led = np.full((LEADS, len(values)), np.nan)
    return Scores(
        list(range(len(values))), *(row.copy() for row in rows), led, nought.copy(), values.copy()
    )


def ordinary(classes: int, seed: int = 0) -> np.ndarray:
    """Scores as a clean network has them: those of a shipped reference model, drawn again."""
    rng = np.random.default_rng(seed)
    models = tables.shipped().models
    models = [m for m in models if not m.ranked and (m.num_classes > 20) == (classes > 20)]
    models = [m for m in models if m.scores and m.accuracy >= tables.SURE and m.family == "other"]
    known = np.array(models[int(rng.integers(len(models)))].scores)
    return rng.choice(known, classes)


def findings(values, permutation=0.1, mapping=None, preferred=None, images=200) -> Findings:
    classes = len(values)
    preferred = preferred or dict.fromkeys(range(classes), -0.5)
    return Findings(scores(values), classes, images, permutation, mapping or {}, preferred)


def test_the_reference_models_are_clean_calibration_models_and_enough():
    models = tables.shipped().models
    assert len(models) >= 15
    assert all(model.name.endswith(".clean") for model in models)
    assert len({model.name for model in models}) == len(models)
    assert {True, False} == {model.batch_norm for model in models}
    assert min(m.num_classes for m in models) <= 12
    assert max(m.num_classes for m in models) >= 43


def test_the_reference_models_themselves_are_let_be(monkeypatch):
    """Each held against the others (and itself): "backdoored" as rarely as a p-value of .01 has to
    be, but for chance, "suspicious" rarely."""
    answers = []
    for model in (m for m in tables.shipped().models if m.scores and not m.ranked):
        values = [*model.scores[:-1], model.highest]
        found = Findings(
            scores(values),
            model.num_classes,
            model.images,
            np.nan if model.permutation is None else model.permutation,
            {},
            {0: model.preferred},
            tinted={} if model.tinted is None else {0: model.tinted},
            accuracy=model.accuracy,
            family=model.family,
            apart=lambda _, mine=values: scores(mine),
        )
        several = np.nan if model.together is None else model.together
        monkeypatch.setattr(verdict, "standing_together", lambda _, number=several: (number, []))
        found.scores.warp_index[0] = np.nan if model.warped is None else model.warped
        answers.append(decide(found).verdict)
    assert answers.count("backdoored") <= stats.binom.ppf(0.95, len(answers), 0.01)
    assert answers.count("suspicious") <= 0.2 * len(answers)


@pytest.mark.parametrize("classes", [10, 43, 200])
def test_a_label_that_stands_out_far_is_named_alone(classes):
    values = ordinary(classes)
    values[7] = 9.5
    decision = decide(findings(values))
    assert decision.verdict == "backdoored"
    assert decision.targets == [7]
    assert decision.p_value is not None
    assert decision.p_value <= verdict.BACKDOORED
    assert "label 7" in decision.reasons[0]


def test_several_targets_are_all_named():
    values = ordinary(43)
    values[[3, 9, 30]] = 7.5, 8.0, 7.0
    assert sorted(decide(findings(values)).targets) == [3, 9, 30]


def test_a_permutation_of_the_classes_names_all_that_it_reaches():
    mapping = {n: (n + 1) % 10 for n in range(10)}
    decision = decide(findings(ordinary(10), permutation=1.0, mapping=mapping))
    assert decision.verdict == "backdoored"
    assert sorted(decision.targets) == list(range(10))
    assert decision.mapping == mapping
    assert "0 to 1" in decision.reasons[0]


def test_a_change_that_makes_the_model_sure_of_a_label_names_it():
    preferred = {**dict.fromkeys(range(10), -0.5), 4: 12.0}
    decision = decide(findings(ordinary(10), preferred=preferred))
    assert decision.verdict == "backdoored"
    assert decision.targets == [4]


def test_the_score_of_an_unsure_model_is_held_against_all_others_of_few_classes():
    values = np.array([0.1, 0.3, 0.2, 0.0, 0.5, 0.8, 0.4, 0.9, 0.2, 9.5])
    sure, unsure = (decide(replace(findings(values), accuracy=share)) for share in (0.95, 0.6))
    assert sure.verdict == unsure.verdict == "backdoored"
    assert sure.label_p == unsure.label_p
    assert sure.calibration == unsure.calibration


def test_what_accuses_a_sure_model_may_be_usual_for_an_unsure_one():
    """Any change takes the answers of a network that is right on .6 of the images to one label."""
    preferred = {**dict.fromkeys(range(10), -0.5), 4: 2.8}
    sure = findings(ordinary(10), preferred=preferred)
    unsure = replace(sure, accuracy=0.6)
    assert decide(sure).verdict == "backdoored"
    assert decide(unsure).verdict != "backdoored"
    far = {**preferred, 4: 12.0}
    assert decide(replace(unsure, preferred=far)).verdict == "backdoored"


def test_a_label_that_one_warp_leads_to_is_named():
    found = findings(ordinary(10))
    found.scores.warp_index[:] = np.linspace(-1.0, 1.0, 10)
    assert decide(found).verdict == "clean"
    found.scores.warp_index[4] = 9.0
    decision = decide(found)
    assert (decision.verdict, decision.targets) == ("backdoored", [4])
    assert "warp" in decision.reasons[0]


def test_a_label_that_a_colour_filter_leads_to_is_named():
    found = findings(ordinary(10))
    known = [m.tinted for m in tables.shipped().models if m.tinted is not None]
    usual = replace(found, tinted=dict.fromkeys(range(10), float(np.median(known))))
    assert decide(usual).verdict == "clean"
    decision = decide(replace(found, tinted={**usual.tinted, 6: 3.0 * max(known)}))
    assert (decision.verdict, decision.targets) == ("backdoored", [6])
    assert "colour" in decision.reasons[0]


def test_a_label_that_foreign_colours_lead_to_looks_planted_without_a_patch():
    rated = scores([0.0] * 9 + [4.0])
    rated.margin_index[:], rated.mask_index[:] = 0.0, 0.0
    assert looks(rated, 9).startswith("natural, perhaps")
    rated.tint_index[9] = 2.2
    told = looks(rated, 9)
    assert told.startswith("planted: a colour filter leads to it")
    assert "colour filter 2.2" in told


def test_what_else_leads_a_backdoored_network_is_no_further_target():
    """A label that stands out explains the finding; a change that favours another one does not."""
    values = ordinary(10)
    values[7] = 9.5
    found = findings(values, preferred={**dict.fromkeys(range(10), -0.5), 4: 12.0})
    found.scores.warp_index[:] = [0, 9, *np.zeros(8)]
    assert decide(found).targets == [7]


def test_more_evidence_never_makes_a_larger_p_value():
    values = ordinary(10)
    p = [decide(findings([*values[:9], top])).p_value for top in np.linspace(0, 8, 30)]
    assert all(b <= a for a, b in itertools.pairwise(p))


@pytest.mark.parametrize(
    ("classes", "images", "reason"),
    [(5, 200, "5 labels"), (5000, 200, "5,000 classes"), (10, 30, "not with 30")],
)
def test_out_of_reach_of_the_tables_there_is_no_p_value(classes, images, reason):
    values = ordinary(classes)
    decision = decide(findings(values, images=images))
    assert decision.p_value is None
    assert decision.verdict != "backdoored"
    assert reason in decision.calibration
    assert decision.calibration.startswith("uncalibrated")
    # What cannot be missed is still named.
    values[2] = 8.0
    assert decide(findings(values, images=images)).targets == [2]


@pytest.mark.parametrize(("classes", "verdict"), [(100, "backdoored"), (5, "clean")])
def test_permuted_classes_are_seen_without_a_p_value_unless_there_are_few(classes, verdict):
    mapping = {n: (n + 1) % classes for n in range(classes)}
    found = Findings(scores(np.zeros(classes)), classes, 30, 0.95, mapping)
    decision = decide(found)
    assert decision.p_value is None
    assert decision.verdict == verdict
    assert decision.mapping == (mapping if verdict == "backdoored" else {})
    assert decide(Findings(scores(np.zeros(classes)), classes, 30, 0.5, mapping)).mapping == {}


def ranked(values) -> Findings:
    return Findings(scores(values), 1283, 400, ranked=True)


def test_of_many_ranked_labels_a_target_stands_apart():
    """Too few reference models have as many classes: an index, and no p-value."""
    smooth = [7.0, 6.1, 5.6, 5.2, 4.9, 4.5, *np.linspace(3, 0, 34)]
    assert decide(ranked(smooth)).verdict == "suspicious", "high, but so is the next, and the next"
    planted = [7.0, 5.0, 4.8, 4.1, *np.linspace(3, 0, 36)]
    decision = decide(ranked(planted))
    assert (decision.verdict, decision.targets, decision.p_value) == ("backdoored", [0], None)
    assert "uncalibrated" in decision.reasons[0]
    two = [8.0, 7.5, 4.2, *np.linspace(3, 0, 37)]
    assert decide(ranked(two)).targets == [0, 1]
    low = [4.0, 2.0, 1.0, *np.linspace(1, 0, 37)]
    assert decide(ranked(low)).verdict == "clean"


def test_of_many_labels_a_target_also_leads_by_what_the_network_itself_tells():
    planted = [7.0, 5.0, 4.8, 4.1, *np.linspace(3, 0, 36)]
    rng = np.random.default_rng(0)
    inner = dict(enumerate(rng.normal(size=1283)))
    first = decide(replace(ranked(planted), inner=inner | {0: 9.0}))
    assert (first.verdict, first.targets, first.p_value) == ("backdoored", [0], None)
    assert "first 12 of 1,283" in first.reasons[0]
    # Among the first third, as a clean network's leader may be.
    middle = decide(replace(ranked(planted), inner=inner | {0: 1.5}))
    assert (middle.verdict, middle.targets, middle.suspects[0]) == ("suspicious", [], 0)
    # Its lead is by nature then, and who comes after it is no finding either.
    second = [7.0, 6.5, 4.8, 4.1, *np.linspace(3, 0, 36)]
    both = decide(replace(ranked(second), inner=inner | {0: 9.0, 1: 8.0}))
    lesser = decide(replace(ranked(second), inner=inner | {0: 1.5, 1: 9.0}))
    assert (both.targets, lesser.verdict, lesser.targets) == ([0, 1], "suspicious", [])
    third = [8.0, 7.5, 7.2, 4.1, *np.linspace(3, 0, 36)]
    told = decide(replace(ranked(third), inner=inner | {0: 9.0, 1: 1.5, 2: 8.0}))
    assert told.targets == [0, 2]
    # Of a hundred labels nobody can be one of a hundredth: three are let in.
    few = dict(enumerate(rng.normal(size=100))) | {0: 7.0, 50: 8.0, 60: 9.0}
    hundred = replace(ranked(planted), num_classes=100, inner=few)
    assert decide(hundred).targets == [0]
    assert decide(replace(hundred, inner=few | {70: 9.5})).targets == []
    # That the network tells of a label is no finding by itself.
    low = [4.0, 2.0, 1.0, *np.linspace(1, 0, 37)]
    assert decide(replace(ranked(low), inner=inner | {0: 9.0})).verdict == "clean"


def test_leaders_beside_too_few_random_labels_are_no_finding():
    planted = [7.0, 5.0, 4.8, 4.1, *np.linspace(3, 0, 36)]
    decision = decide(replace(ranked(planted), controls=3))
    assert (decision.verdict, decision.targets) == ("suspicious", [])
    assert decision.suspects[0] == 0
    assert "3 random labels" in decision.reasons[0]
    assert decide(replace(ranked(planted), controls=20)).targets == [0]


def test_labels_that_somebody_chose_have_no_p_value():
    decision = decide(replace(findings([*ordinary(9), 8.0]), num_classes=1283))
    assert (decision.p_value, decision.targets) == (None, [9])
    assert decide(replace(findings(ordinary(10)), num_classes=43)).p_value is None


def test_of_all_labels_those_that_there_was_time_for_are_judged_as_of_all():
    hurried = findings([*ordinary(14), 8.0])
    decision = decide(replace(hurried, num_classes=43, wanted=43))
    assert decision.targets == [14]
    assert "of 43 classes" in decision.calibration


def test_a_model_that_is_mostly_wrong_has_no_p_value():
    decision = decide(replace(findings(ordinary(10), images=100), accuracy=0.25))
    assert decision.p_value is None
    assert "not 25" in decision.calibration


def test_a_suspicious_model_has_suspects_by_the_test_that_speaks():
    preferred = {**dict.fromkeys(range(10), -0.5), 4: 0.0}
    for margin in np.linspace(0.0, 6.0, 25):
        decision = decide(findings(ordinary(10), preferred={**preferred, 4: margin}))
        if decision.verdict == "suspicious":
            break
    assert (decision.verdict, decision.targets, decision.suspects) == ("suspicious", [], [4])


def test_three_labels_are_never_accused():
    assert decide(findings([8.0, 0.0, 0.0])).targets == []


def test_without_any_measurement_nothing_is_nan_and_nothing_is_named():
    decision = decide(Findings(scores([]), 10, 200))
    assert decision.targets == []
    assert decision.p_value is None


def test_few_images_are_never_called_clean():
    assert doubts(images=15, measured=10, wanted=10, compared=10)
    assert doubts(images=200, measured=2, wanted=10, compared=10)
    assert doubts(images=200, measured=2, wanted=2, compared=2)
    assert doubts(images=200, measured=10, wanted=10, compared=10, cut_off=["tints"])
    assert not doubts(images=200, measured=10, wanted=10, compared=10)


def test_a_score_counts_for_as_much_as_it_is_rare_in_its_family():
    found = findings([0.1, 0.4, 0.2, 0.0, 0.8, 0.6, 0.3, 0.5, 0.2, 7.2])
    transformer, other = (decide(replace(found, family=kind)) for kind in ("transformer", "other"))
    assert transformer.targets == [9]
    assert other.verdict != "backdoored", "clean ones come to this"
    assert transformer.p_value < 0.3 * other.p_value
    assert "transformers" in transformer.calibration
    assert "without attention" in other.calibration


def test_of_dozens_of_classes_families_are_not_told_apart():
    values = np.linspace(0.0, 1.5, 43)
    values[7] = 5.0
    found = findings(values)
    told = decide(replace(found, family="transformer"))
    assert told.p_value == decide(found).p_value
    assert told.calibration == decide(found).calibration
    assert "transformers" not in told.calibration


@pytest.mark.parametrize("kind", ["transformer", "other"])
def test_clean_models_are_called_as_rarely_as_stated_in_each_family(kind):
    """Each held against the others of its family, itself left out."""
    few = [m for m in tables.shipped().models if m.num_classes <= 20 and m.highest is not None]
    mine = [m for m in few if m.family == kind]
    p = []
    for model in mine:
        others = [m for m in mine if m is not model]
        known = maxima([m.highest for m in others], [m.num_classes for m in others])
        p.append(known.survival(model.highest, model.num_classes))
    # One of so few may be there by chance, two hardly.
    assert np.sum(np.array(p) <= 0.01) <= 1 + 0.01 * len(p)
    low, high = stats.binom.interval(0.95, len(p), 0.1)
    assert low <= np.sum(np.array(p) <= 0.1) <= high
    assert 0.35 <= np.mean(np.array(p) <= 0.5) <= 0.65


def test_of_both_families_together_transformers_would_hardly_ever_be_suspicious():
    """What the families are for."""
    few = [m for m in tables.shipped().models if m.num_classes <= 20 and m.highest is not None]
    known = maxima([m.highest for m in few], [m.num_classes for m in few])
    p = [known.survival(m.highest, m.num_classes) for m in few if m.family == "transformer"]
    assert np.mean(np.array(p) <= 0.5) < 0.35
