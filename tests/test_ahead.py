"""How far ahead a small change takes a label: in units that clean networks share."""

from __future__ import annotations

import numpy as np
import pytest

from goodnet import tables
from goodnet.ahead import LEADS, MOST, ahead_index, leads
from goodnet.scores import HANDFUL, Raw, combine

KNOWN = [(0.4, 0.2), (0.6, 0.3), (0.7, 0.4)]
EVERY = np.ones(10, dtype=bool)


def columns(rng: np.random.Generator, spread: float) -> list[np.ndarray]:
    return [rng.normal(0.0, spread, 10) for _ in range(LEADS)]


def test_a_lead_is_what_lies_between_a_label_and_the_middle_of_the_others():
    values = np.arange(10.0)
    led = leads([values] * LEADS, EVERY)
    assert led[0, 9] == 9.0 - 4.0
    apart = EVERY.copy()
    apart[[7, 8]] = False
    assert leads([values] * LEADS, apart)[0, 9] == 9.0 - 3.0


def test_what_was_not_measured_leads_nowhere():
    values = np.arange(10.0)
    values[3] = np.nan
    led = leads([values, np.full(10, np.nan), values], EVERY)
    assert np.isnan(led[:, 3]).all()
    assert np.isnan(led[1]).all()
    assert np.isfinite(led[0, 4])
    index = ahead_index(led, KNOWN)
    assert index[3] == 0.0
    assert index[9] == MOST
    two = np.array([0.0, 9.0])
    assert not ahead_index(leads([two] * LEADS, np.ones(2, dtype=bool)), KNOWN).any()


@pytest.mark.parametrize("spread", [0.001, 0.1])
def test_a_small_spread_makes_nothing_stand_out(spread):
    """By median and MAD some label of ten always lies far out, however alike they are."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert ahead_index(leads(columns(rng, spread), EVERY), KNOWN).max() == 0.0


def test_one_kind_of_change_is_enough():
    for kind in range(LEADS):
        found = columns(np.random.default_rng(kind), 0.1)
        found[kind][6] = 3.0
        index = ahead_index(leads(found, EVERY), KNOWN)
        assert int(index.argmax()) == 6
        assert index[6] > 4.0
        assert np.delete(index, 6).max() == 0.0


def test_where_nobody_knows_what_is_usual_nothing_is_added():
    led = leads([np.arange(10.0)] * LEADS, EVERY)
    assert not ahead_index(led, []).any()


def planted(labels: int, usual: list[tuple[float, float]]) -> Raw:
    rng = np.random.default_rng(5)
    margins = {n: [v, v, v] for n, v in enumerate(rng.normal(0.0, 0.4, labels))}
    margins[4] = [8.0, 8.0, 8.0]
    masks = dict(enumerate(np.exp(rng.normal(4.0, 0.3, labels))))
    patches = dict(enumerate(rng.normal(0.0, 0.4, labels)))
    return Raw(margins, masks, patches=patches, clean_margin=4.0, usual_leads=usual)


def test_it_is_added_to_the_score_of_few_labels_and_of_no_more():
    few, many = range(10), range(HANDFUL + 1)
    bare, told = (combine(few, planted(10, usual), few) for usual in ([], KNOWN))
    assert told.ahead_index[4] > 3.0
    assert np.allclose(told.score, bare.score + told.ahead_index)
    assert not combine(many, planted(HANDFUL + 1, KNOWN), many).ahead_index.any()


def test_what_is_usual_is_that_of_clean_networks_of_the_family_that_are_as_sure():
    models = tables.shipped().models
    sure, unsure = (tables.usual_leads(models, how, "other") for how in (True, False))
    transformers = tables.usual_leads(models, True, "transformer")
    assert len(sure) == len(unsure) == len(transformers) == LEADS
    # A network that is right on .6 of the images has small margins, which a change exceeds at once.
    assert unsure[0][0] > 3 * sure[0][0]
    assert transformers[0][0] < sure[0][0]
    # Of unsure transformers there are too few: they are held against all that are unsure.
    assert tables.usual_leads(models, False, "transformer") == unsure
    assert tables.usual_leads(models[:5], True, "other") == []


def test_few_labels_of_clean_networks_are_far_ahead():
    """The bars of the score are for what is left of it in clean networks."""
    for family in ("transformer", "other"):
        for sure in (True, False):
            mine = [m for m in tables.shipped().models if m.leads and m.family == family]
            mine = [m for m in mine if (m.accuracy >= tables.SURE) == sure]
            if not mine:
                continue
            known = tables.usual_leads(mine, sure, family)
            most = [
                max((v - m) / s for v, (m, s) in zip(model.leads, known, strict=True))
                for model in mine
            ]
            assert np.mean(np.array(most) >= 3.0) <= 0.05
            assert np.median(most) < 1.0
