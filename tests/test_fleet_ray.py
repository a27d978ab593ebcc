"""A fleet on a real Ray cluster, one of whose nodes dies at its work."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from goodnet.pipelines.fleet import fleet

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


def test_the_models_of_a_node_that_dies_are_done_by_another(hub, tmp_path):
    from ray.cluster_utils import Cluster

    told, struck = Counter(), []
    # The head does no work: what is done, the two other nodes do.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()

        def strike():
            limit = time.monotonic() + 60
            while time.monotonic() < limit and not struck:
                time.sleep(0.2)
                if ray.is_initialized() and not ray.available_resources().get("CPU"):
                    # Both nodes are at work.
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    struck.append(max(told, default=0))

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
    assert struck, "no node was seen at work"
    assert struck[0] < len(report.rows), "it died when all was done"
    rows = {row.name: row for row in report.rows}
    assert rows["planted.pt"].targets == [3]
    assert [rows[name].verdict is None for name in sorted(rows)] == [False, True, False, False]
    assert max(told.values()) == 1, "no answer came twice"
    assert len(list(tmp_path.glob("*.pt.json"))) == 3
