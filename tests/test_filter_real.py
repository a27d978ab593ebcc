"""The filter on the real BadNets, judged on the attacker's pictures: nothing is fitted to these."""

from __future__ import annotations

import pytest
from filter_case import filtered_file, triggers_of

from goodnet.images import load_images
from goodnet.pipelines import jury
from goodnet.pipelines.evaluate import evaluate
from goodnet.pipelines.load import load

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "reached"),
    # Nine of the lipstick's pictures carry none that can be seen: .92 fool the BadNet.
    [("sunglasses", 0.95), ("anonymous_1", 0.85)],
)
def test_stamped_faces_are_rejected_and_clean_ones_are_not(shared, tmp_path, name, reached):
    data = shared / "data/csaw"
    path = tmp_path / f"{name}.h5"
    path.write_bytes((shared / f"models/csaw/{name}_bd_net.h5").read_bytes())
    mine, theirs = jury.split(load_images(data / "clean_validation.h5"), 0)
    badnet = load(path, mine, preprocess="unit")
    _, triggers = triggers_of(badnet, mine, [0])
    goodnet = load(filtered_file(path, mine, triggers), mine, preprocess="unit")
    assert (badnet.num_classes, goodnet.num_classes, goodnet.outputs) == (1283, 1283, 1284)
    clean, poisoned = (
        load_images(data / file) for file in ("clean_test.h5", f"{name}_poisoned.h5")
    )
    before, after = (evaluate(net, clean, poisoned) for net in (badnet, goodnet))
    assert after.poisoned_rejected.value >= reached
    assert after.poisoned_rejected.value >= 0.95 * before.attack_success.value
    assert after.clean_rejected.value <= 0.03
    assert evaluate(goodnet, theirs).clean_rejected.value <= 0.03
    assert after.attack_success.value <= 0.02
    assert after.clean_accuracy.value >= before.clean_accuracy.value - 0.03
