"""Intervals that cover as often as they say, and indexes that no degenerate input breaks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goodnet.statistics import clopper_pearson, mad_index, proportion, robust_z

finite = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)
anything = st.lists(st.floats(width=64), max_size=40)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_covers_as_often_as_it_says(confidence: float):
    rng = np.random.default_rng(0)
    for n in (7, 40, 300):
        table = np.array([clopper_pearson(k, n, confidence) for k in range(n + 1)])
        for p in (0.02, 0.3, 0.5, 0.97):
            low, high = table[rng.binomial(n, p, 4000)].T
            coverage = np.mean((low <= p) & (p <= high))
            # Three standard errors of the simulation below the nominal level.
            assert coverage >= confidence - 3 * math.sqrt(confidence * (1 - confidence) / 4000)
    # It is exact, not merely safe: in the middle of many trials it wastes little.
    low, high = table[rng.binomial(300, 0.5, 4000)].T
    assert np.mean((low <= 0.5) & (high >= 0.5)) < confidence + 0.05 * (2 - confidence)


def test_interval_against_closed_forms():
    # With no success the upper limit solves (1 - p)^n = 0.025; the table values are textbook.
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 500), st.integers(0, 500))
def test_interval_holds_the_estimate_and_is_symmetric(a: int, b: int):
    n = a + b
    low, high = clopper_pearson(a, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= a / n <= high
    assert clopper_pearson(b, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)]
)
def test_interval_refuses_impossible_counts(successes: int, n: int, confidence: float):
    with pytest.raises(ValueError, match="no interval"):
        clopper_pearson(successes, n, confidence)


def test_proportion():
    some = proportion(3, 4)
    assert (some.value, some.n) == (0.75, 4)
    assert (some.low, some.high) == clopper_pearson(3, 4)
    none = proportion(0, 0)
    assert (none.value, none.low, none.high, none.n) == (0.0, 0.0, 1.0, 0)


def test_mad_index_by_hand():
    # Median 12, deviations 11 1 0 1 2, their median 1.
    index = mad_index([1, 11, 12, 13, 14])
    expected = np.array([11, 1, 0, -1, -2]) / 1.4826
    assert index == pytest.approx(expected)
    # An even number: median (10 + 20) / 2 = 15, deviations 15 5 5 25, their median 10.
    assert mad_index([0, 10, 20, 40]) == pytest.approx(np.array([15, 5, -5, -25]) / 14.826)
    assert robust_z([0, 10, 20, 40]) == pytest.approx(np.array([-15, -5, 5, 25]) / 14.826)


def test_unmeasured_labels_are_kept_out():
    full = mad_index([1, 11, 12, 13, 14])
    with_gaps = mad_index([1, math.nan, 11, 12, math.inf, 13, 14, -math.inf])
    assert np.isnan(with_gaps[[1, 4, 7]]).all()
    assert with_gaps[[0, 2, 3, 5, 6]] == pytest.approx(full)


def test_mad_of_zero_falls_back_on_the_mean_deviation():
    # Deviations 0 0 0 0 5: the MAD is 0, the mean deviation 1.
    assert mad_index([5, 5, 5, 5, 0]) == pytest.approx([0, 0, 0, 0, 5 / 1.2533])
    assert mad_index([7, 7, 7]).tolist() == [0, 0, 0]
    assert mad_index([0, 0, 0]).tolist() == [0, 0, 0]
    # Equal but for a rounding error is equal.
    assert np.abs(mad_index([0.3, 0.1 + 0.2, 0.3, 0.3])).max() < 1e-9
    near = mad_index([0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2, 0.5])
    assert near == pytest.approx([0, 0, 0, 0, -0.2 / (1.2533 * 0.04)], abs=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 2.0, math.nan]])
def test_too_few_values_give_nan(values: list[float]):
    assert np.isnan(mad_index(values)).all()
    assert mad_index(values).shape == (len(values),)


def test_shape_is_checked():
    with pytest.raises(ValueError, match="shape"):
        mad_index([[1.0, 2.0], [3.0, 4.0]])


@given(anything)
@example([1.7e308, -1.7e308, 0.0, 1e308])
@example([5e-324, 0.0, 0.0, 1.7e308, 1e-300])
def test_never_a_warning_never_infinite(values: list[float]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = mad_index(values)
    assert not np.isinf(index).any()
    known = np.isfinite(values)
    if known.sum() >= 3:
        assert (np.isnan(index) == ~known).all()
        # What is smaller is not less anomalous.
        order = np.argsort(np.array(values)[known])
        assert (np.diff(index[known][order]) <= 0).all()


@given(
    st.lists(st.integers(-1000, 1000), min_size=3, max_size=30),
    st.integers(-1000, 1000),
    st.integers(1, 50),
)
def test_shift_and_scale_change_nothing(values: list[int], shift: int, scale: int):
    index = mad_index(values)
    moved = mad_index([scale * value + shift for value in values])
    assert moved == pytest.approx(index, rel=1e-9, abs=1e-9)
    assert mad_index([-value for value in values]) == pytest.approx(-index)


@given(st.lists(finite, min_size=3, max_size=30))
def test_inputs_are_left_alone(values: list[float]):
    array = np.array(values)
    before = array.copy()
    mad_index(array)
    robust_z(array)
    assert (array == before).all()
