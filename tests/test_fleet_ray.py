"""A fleet on a real Ray cluster of two nodes, one of which dies."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from test_fleet import hub  # noqa: F401 - a fixture

from goodnet.pipelines.fleet import fleet

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


def test_the_models_of_a_node_that_dies_are_done_by_another(hub, tmp_path):  # noqa: F811
    from ray.cluster_utils import Cluster

    told = Counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def strike():
            # Both nodes are at work by then, and nothing is done yet.
            time.sleep(8)
            cluster.remove_node(node, allow_graceful=False)

        striker = threading.Thread(target=strike)
        striker.start()
        report = fleet(
            hub / "models",
            hub / "clean.npz",
            tmp_path,
            ray=cluster.address,
            progress=lambda _, done, total: told.update([done]),
        )
        striker.join()
    finally:
        cluster.shutdown()
    rows = {row.name: row for row in report.rows}
    assert rows["planted.pt2"].targets == [3]
    assert [rows[name].verdict is None for name in sorted(rows)] == [False, True, False, False]
    assert max(told.values()) == 1, "no answer came twice"
    assert len(list(tmp_path.glob("*.pt2.json"))) == 3
