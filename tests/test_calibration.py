"""P-values against simulation: their size on clean models, their power, their honesty when few."""

import itertools

import numpy as np
import pytest

from goodnet.calibration import FEWEST_MODELS, combine, maxima, reference, selected

CLASSES = (10, 10, 12, 43)


def of_model(known, score, labels):
    """The chance that the largest of so many independent labels reaches a score."""
    survival = known.survival(score)
    return 1.0 if survival >= 1.0 else float(-np.expm1(labels * np.log1p(-survival)))


def scores(law, rng, labels):
    """Scores of a clean model's labels; some models are a little wider than others."""
    wide = np.exp(0.15 * rng.normal())
    if law == "normal":
        return wide * rng.normal(size=labels)
    if law == "exponential":
        return wide * rng.exponential(size=labels)
    return wide * rng.gamma(3.0, 0.5, size=labels)


def clean_p_values(law, models, rng, repeats=40, fresh=50):
    """P-values of clean models, each batch by a reference of its own."""
    found = []
    for _ in range(repeats):
        known = reference([scores(law, rng, int(rng.choice(CLASSES))) for _ in range(models)])
        for _ in range(fresh):
            labels = int(rng.choice(CLASSES))
            found.append(of_model(known, scores(law, rng, labels).max(), labels))
    return np.array(found)


@pytest.mark.parametrize("models", [20, 60])
@pytest.mark.parametrize("law", ["normal", "gamma", "exponential"])
def test_clean_models_are_called_as_rarely_as_stated(law, models):
    p = clean_p_values(law, models, np.random.default_rng(5))
    # 2,000 p-values, but only 40 references: wide bounds, which a wrong law would still break.
    assert (p <= 0.01).mean() <= 0.022
    assert 0.05 <= (p <= 0.1).mean() <= 0.15
    assert 0.38 <= (p <= 0.5).mean() <= 0.62


def test_a_thousand_classes_do_not_raise_more_alarms():
    rng = np.random.default_rng(6)
    known = reference([scores("normal", rng, 43) for _ in range(40)])
    p = [of_model(known, scores("normal", rng, 1283).max(), 1283) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.01) <= 0.03


def robust(rng, labels):
    """Scores as the verdict has them: robust z by what the model's own labels tell of spread."""
    values = rng.normal(size=labels)
    middle = np.median(values)
    # A floor under the spread, as the channels have one.
    return (values - middle) / np.hypot(1.4826 * np.median(abs(values - middle)), 0.5)


def test_scores_that_are_relative_to_the_models_own_labels():
    """Their law depends on the number of labels: a model counts once, whatever it has of them."""
    rng = np.random.default_rng(13)
    small = {10: [], 43: []}
    for _ in range(60):
        known = reference([robust(rng, int(rng.choice((10, 10, 43)))) for _ in range(40)])
        for labels, found in small.items():
            found += [of_model(known, robust(rng, labels).max(), labels) for _ in range(20)]
    p = np.concatenate([small[10], small[43]])
    assert (p <= 0.01).mean() <= 0.025
    assert 0.04 <= (p <= 0.1).mean() <= 0.17


def test_a_planted_label_is_found():
    rng = np.random.default_rng(7)
    known = reference([scores("gamma", rng, int(rng.choice(CLASSES))) for _ in range(40)])
    p = [of_model(known, max(scores("gamma", rng, 10).max(), 9.0), 10) for _ in range(50)]
    assert max(p) < 0.01


def test_few_reference_models_make_a_careful_p_value():
    rng = np.random.default_rng(8)
    rows = [rng.exponential(size=10) for _ in range(400)]
    few = [reference(rows[i : i + FEWEST_MODELS]) for i in range(0, 400, FEWEST_MODELS)]
    assert {known.total for known in few} == {FEWEST_MODELS}
    many = of_model(reference(rows), 14.0, 10)
    assert np.mean([of_model(known, 14.0, 10) for known in few]) > 3 * many
    assert reference(rows[: FEWEST_MODELS - 1]) is None
    assert reference([[1.0]] * 20) is None, "no spread, no scale"


def test_p_values_fall_as_scores_rise_and_never_leave_their_range():
    rng = np.random.default_rng(9)
    known = reference([rng.normal(size=10) for _ in range(30)])
    p = [of_model(known, score, 10) for score in np.linspace(-5, 60, 400)]
    assert all(0.0 < value <= 1.0 for value in p)
    assert (np.diff(p) <= 1e-12).all()
    assert of_model(known, float("nan"), 10) == 1.0
    assert of_model(known, float("-inf"), 10) == 1.0
    assert of_model(known, float("inf"), 10) == 0.0


def test_a_statistic_of_the_whole_model_is_one_number():
    rng = np.random.default_rng(10)
    p = []
    for _ in range(40):
        known = reference([[value] for value in rng.beta(2, 8, size=40)])
        p += [of_model(known, value, 1) for value in rng.beta(2, 8, size=50)]
    assert (np.array(p) <= 0.01).mean() <= 0.02
    assert 0.05 <= (np.array(p) <= 0.1).mean() <= 0.15


def test_bonferroni_holds_under_any_dependence():
    rng = np.random.default_rng(11)
    weights = (0.6, 0.2, 0.2)
    same = rng.uniform(size=20000)
    alike = [combine((p, p, p), weights) for p in same]
    apart = [combine(tuple(rng.uniform(size=3)), weights) for _ in range(20000)]
    for found in (alike, apart):
        assert np.mean(np.array(found) <= 0.05) <= 0.055
    assert combine((None, 0.01, None), weights) == pytest.approx(0.05)
    assert combine((None, None, None), weights) is None
    with pytest.raises(ValueError, match="weights"):
        combine((0.1, 0.2), (0.7, 0.7))


def test_false_discoveries_are_as_few_as_stated():
    rng = np.random.default_rng(12)
    false, power = [], []
    for _ in range(400):
        p = rng.uniform(size=43)
        planted = rng.permutation(43)[: int(rng.integers(0, 22))]
        p[planted] = rng.beta(0.05, 10.0, size=len(planted))
        named = set(selected(p))
        false.append(len(named - set(planted.tolist())) / max(1, len(named)))
        if len(planted):
            power.append(len(named & set(planted.tolist())) / len(planted))
    assert np.mean(false) <= 0.06
    assert np.mean(power) > 0.8
    assert selected([0.5, 0.9]) == []
    assert selected([0.9, 0.001, float("nan")]) == [1]
    assert selected([]) == []


LAWS = {
    "gumbel": lambda rng, n: 2.6 + 0.5 * rng.gumbel(size=n),
    "normal": lambda rng, n: 2.6 + 0.6 * rng.normal(size=n),
    "gamma": lambda rng, n: rng.gamma(6.0, 0.4, size=n),
    "lognormal": lambda rng, n: np.exp(0.3 * rng.normal(size=n)),
    "largest of 43": lambda rng, n: rng.exponential(size=(n, 43)).max(1),
    "two kinds of network": lambda rng, n: (
        rng.choice([1.0, 1.4], size=n) * (1.5 + 0.4 * rng.gumbel(size=n))
    ),
}
"""Of a clean model's statistic; none of them is told to the calibration."""


@pytest.mark.parametrize("law", LAWS)
def test_a_models_p_value_is_as_rare_as_it_says_whatever_the_law(law):
    rng = np.random.default_rng(11)
    p = np.concatenate(
        [
            [known.survival(v) for v in LAWS[law](rng, 25)]
            for known in (maxima(LAWS[law](rng, 19)) for _ in range(120))
        ]
    )
    # 3,000 p-values of 120 references.
    assert (p <= 0.01).mean() <= 0.022
    assert (p <= 0.001).mean() <= 0.006
    assert 0.03 <= (p <= 0.1).mean() <= 0.14
    assert 0.3 <= (p <= 0.5).mean() <= 0.65


def test_an_attacked_models_statistic_far_above_is_told_from_clean_ones():
    rng = np.random.default_rng(12)
    far = [maxima(1.3 + 0.4 * rng.gumbel(size=19)).survival(5.0) for _ in range(100)]
    assert np.mean(np.array(far) <= 0.01) >= 0.95


def test_fewer_reference_models_make_larger_p_values():
    rng = np.random.default_rng(13)
    few = [maxima(rng.gumbel(size=8)).survival(8.0) for _ in range(60)]
    many = [maxima(rng.gumbel(size=80)).survival(8.0) for _ in range(60)]
    assert np.median(few) > 3 * np.median(many)
    assert maxima(rng.gumbel(size=FEWEST_MODELS - 1)) is None
    assert maxima([1.0] * 20) is None, "without any spread nothing can be said"


def test_a_models_p_value_falls_with_its_statistic_and_stays_in_range():
    known = maxima(np.random.default_rng(14).gumbel(size=19))
    p = [known.survival(value) for value in np.linspace(-20, 200, 300)]
    assert all(0 <= b <= a <= 1 for a, b in itertools.pairwise(p))
    assert known.survival(float("nan")) == 1.0
    assert known.survival(float("inf")) == 0.0


def test_more_classes_do_not_make_more_alarms():
    """The largest of 1,283 scores is larger than that of 10; the p-value allows for it."""
    rng = np.random.default_rng(15)

    def model(labels):
        return float((0.35 * rng.exponential(size=labels)).max())

    sizes = [10] * 18 + [43] * 8 + [610] * 2
    p = {10: [], 43: [], 1283: []}
    for _ in range(60):
        known = maxima([model(n) for n in sizes], sizes)
        for labels, found in p.items():
            found += [known.survival(model(labels), labels) for _ in range(20)]
    for labels, found in p.items():
        values = np.array(found)
        assert (values <= 0.01).mean() <= 0.025, labels
        assert 0.05 <= (values <= 0.1).mean() <= 0.17, labels


@pytest.mark.parametrize("scale", [0.15, 1.0])
def test_a_number_that_is_nought_of_most_clean_models_accuses_as_rarely_as_stated(scale):
    rng = np.random.default_rng(5)

    def clean(count):
        return np.where(rng.random(count) < 0.4, rng.exponential(scale, count), 0.0)

    called = []
    for _ in range(300):
        known = reference(list(clean(69)), 0.4)
        called += [known.survival(value) for value in clean(100)]
    shares = {level: float(np.mean(np.array(called) <= level)) for level in (0.1, 0.01, 0.001)}
    assert 0.05 <= shares[0.1] <= 0.12
    assert 0.004 <= shares[0.01] <= 0.0125
    assert shares[0.001] <= 0.0015
    # And one that the attack drives far beyond them is found.
    assert known.survival(8.0 * scale) < 0.001
