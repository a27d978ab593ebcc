"""What a network tells of its labels by itself, as one number against the other labels."""

from __future__ import annotations

import numpy as np
import pytest

from goodnet.inner import FEWEST_LABELS, MOST, inner_index, standing


def test_a_value_stands_among_the_others_by_hand():
    values = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    others = values[:4]
    spread = np.hypot(1.4826 * 1.0, 0.3 * others.std())
    assert standing(values)[4] == pytest.approx((10.0 - 2.5) / spread, rel=1e-3)


def test_equal_values_stand_nowhere_and_no_value_stands_endlessly_far():
    assert standing(np.full(10, 3.0)).tolist() == [0.0] * 10
    assert standing(np.array([0.0] * 9 + [1.0]))[9] == MOST
    found = standing(np.array([1.0, np.nan, 2.0, np.inf, 4.0, 3.0]))
    assert np.isfinite(found).all()
    assert found[1] == found[3] == 0.0
    assert standing(np.array([])).shape == (0,)


def numbers(rng: np.random.Generator, labels: int) -> dict[int, float]:
    return {label: float(value) for label, value in enumerate(rng.normal(size=labels))}


def test_four_numbers_of_one_label_make_it_stand_out_and_one_alone_hardly():
    rng = np.random.default_rng(1)
    columns = [numbers(rng, 12) for _ in range(4)]
    for column in columns:
        column[7] = 3.0
    rows = {label: (columns[1][label], columns[2][label]) for label in range(12)}
    index = inner_index(columns[0], rows, columns[3])
    assert max(index, key=index.__getitem__) == 7
    rng = np.random.default_rng(1)
    columns = [numbers(rng, 12) for _ in range(4)]
    columns[3][7] = 3.0
    rows = {label: (columns[1][label], columns[2][label]) for label in range(12)}
    assert inner_index(columns[0], rows, columns[3])[7] < 0.5 * index[7]


def test_less_evidence_is_never_more():
    rng = np.random.default_rng(2)
    leaning = numbers(rng, 10) | {3: 5.0}
    alone = inner_index(leaning, {}, {})
    assert alone[3] == pytest.approx(standing(np.array([leaning[n] for n in range(10)]))[3] / 4)
    assert inner_index({}, {}, {}) == {}


def test_labels_without_images_gain_nothing_by_it():
    rng = np.random.default_rng(6)
    leaning, driven = numbers(rng, 10), numbers(rng, 10)
    dormant, unused = numbers(rng, 10), numbers(rng, 10)
    rows = {n: (dormant[n], unused[n]) if n != 4 else (dormant[n],) for n in range(10)}
    found = inner_index(leaning, rows, driven)
    whole = inner_index(leaning, {n: (dormant[n],) for n in range(10)}, driven)
    assert found[4] == pytest.approx(whole[4])


def test_a_handful_of_labels_is_too_few_to_tell():
    few = {n: float(n == 0) for n in range(FEWEST_LABELS - 1)}
    assert inner_index(few, {n: (v, v) for n, v in few.items()}, few) == {}
    assert len(inner_index(few | {FEWEST_LABELS: 0.5}, {}, {})) == FEWEST_LABELS


@pytest.mark.parametrize("labels", [8, 10, 12])
def test_the_largest_of_a_clean_network_is_what_the_docstrings_say(labels):
    """The index of a network whose labels differ by chance: rarely as far as targets'."""
    rng = np.random.default_rng(labels)
    largest = []
    for _ in range(200):
        columns = [numbers(rng, labels) for _ in range(4)]
        rows = {n: (columns[1][n], columns[2][n]) for n in range(labels)}
        largest.append(max(inner_index(columns[0], rows, columns[3]).values()))
    assert 1.5 < np.quantile(largest, 0.95) < 2.7
