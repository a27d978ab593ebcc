"""The decision, checked by simulation: how often would a clean model be flagged?"""

from __future__ import annotations

import numpy as np
import pytest

from goodnet import verdict


def clean_scores(rng: np.random.Generator, classes: int, skew: float = 0.3) -> verdict.Scores:
    labels = list(range(classes))
    margins = {n: tuple(rng.normal(size=3)) for n in labels}
    sizes = {n: float(np.exp(4 + skew * rng.normal())) for n in labels}
    return verdict.combine(labels, margins, sizes, labels)


@pytest.mark.parametrize("classes", [4, 6, 10, 43, 200])
def test_clean_models_with_independent_labels_are_rarely_flagged(classes):
    """The paper's rule flags a third of clean 10-class models and most 100-class ones."""
    rng = np.random.default_rng(classes)
    runs = 200 if classes < 100 else 40
    ours = sum(bool(verdict.flagged(clean_scores(rng, classes), classes)) for _ in range(runs))
    assert ours / runs < 0.12


@pytest.mark.parametrize("classes", [10, 43, 200])
def test_a_label_that_stands_out_in_both_channels_is_named(classes):
    rng = np.random.default_rng(classes)
    labels = list(range(classes))
    margins = {n: tuple(rng.normal(size=3)) for n in labels}
    sizes = {n: float(np.exp(4 + 0.3 * rng.normal())) for n in labels}
    margins[7] = (6.0, 6.0, 6.0)
    sizes[7] = float(np.exp(4 - 0.3 * 6))
    assert verdict.flagged(verdict.combine(labels, margins, sizes, labels), classes) == [7]


def test_failed_inversions_are_kept_out_of_the_statistics():
    labels = list(range(10))
    margins = {n: (float(n % 3),) for n in labels}
    sizes = {n: 50.0 + n for n in range(8)}  # 8 and 9 failed
    with_failures = verdict.combine(labels, margins, sizes, labels)
    without = verdict.combine(labels[:8], {n: margins[n] for n in range(8)}, sizes, labels[:8])
    assert np.isnan(with_failures.anomaly_index[8:]).all()
    assert np.allclose(with_failures.anomaly_index[:8], without.anomaly_index)
    assert np.isfinite(with_failures.score).all()


def test_equal_masks_do_not_divide_by_zero():
    labels = list(range(6))
    scores = verdict.combine(labels, {}, dict.fromkeys(labels, 40.0), labels)
    assert np.array_equal(scores.anomaly_index, np.zeros(6))
    assert verdict.neural_cleanse(scores) == []


def test_few_images_are_never_called_clean():
    assert verdict.doubts(images=15, measured=10, wanted=10, compared=10)
    assert verdict.doubts(images=200, measured=2, wanted=10, compared=10)
    assert verdict.doubts(images=200, measured=2, wanted=2, compared=2)
    assert not verdict.doubts(images=200, measured=10, wanted=10, compared=10)
