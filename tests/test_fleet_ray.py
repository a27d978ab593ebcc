"""A fleet on a real Ray cluster of two nodes, one of which dies at its work.

The cluster runs in processes that are started here; none but these is ended.
"""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from fleet_case import result_of, same

from goodnet.pipelines.fleet import fleet

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'goodnet[ray]'")


@pytest.fixture
def scan_and_strike(tmp_path):
    """Scans a folder of models on a cluster; as soon as both nodes are at work, one is killed.

    Gives the report, how often each count of models was told, and the count at the time of the
    kill.
    """
    from ray.cluster_utils import Cluster

    # The head does no work: what is done, the two other nodes do.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    over = threading.Event()

    def run(folder):
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        told, struck = Counter(), []

        def strike():
            while not over.wait(0.1) and not struck:
                if ray.is_initialized() and not ray.available_resources().get("CPU"):
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    struck.append(max(told, default=0))

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            report = fleet(
                folder / "models",
                folder / "clean.npz",
                tmp_path,
                ray=cluster.address,
                progress=lambda _, done, total: told.update([done]),
            )
        finally:
            over.set()
            striker.join()
        assert struck, "no node was killed at its work"
        assert struck[0] < len(report.rows), "it died when all was done"
        return report, told

    try:
        yield run
    finally:
        over.set()
        cluster.shutdown()


@pytest.mark.slow
def test_the_models_of_a_node_that_dies_are_done_by_another(hub, tmp_path, scan_and_strike):
    report, told = scan_and_strike(hub)
    rows = {row.name: row for row in report.rows}
    assert rows["planted.pt"].targets == [3]
    assert [rows[name].verdict is None for name in sorted(rows)] == [False, True, False, False]
    assert max(told.values()) == 1, "no answer came twice"
    assert len(list(tmp_path.glob("*.pt.json"))) == 3


@pytest.mark.slow
def test_the_share_of_a_node_that_dies_is_measured_by_another(
    many, alone, tmp_path, scan_and_strike
):
    report, _ = scan_and_strike(many)
    assert report.rows[0].error is None
    assert same(result_of(tmp_path), alone)
