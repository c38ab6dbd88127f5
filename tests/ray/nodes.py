"""Clusters of several nodes on this machine, some of which die."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster


@contextmanager
def small_nodes(count: int) -> Iterator[tuple[Cluster, dict]]:
    """A head without CPUs, and nodes of one CPU each by their ids."""
    # a death is seen in 3 s, not 15
    quickly = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quickly}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield (cluster, {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(count))})
    finally:
        cluster.shutdown()


def kill_a_busy_node(cluster: Cluster, nodes: dict) -> None:
    """End a node whose CPU is taken, as a machine ends that loses its power, and take it out of ``nodes``.

    Ray itself holds it for alive a while longer.
    """
    cluster.remove_node(nodes.pop(busy_node(nodes)), allow_graceful=False)


def busy_node(nodes: dict) -> str:
    """The id of one of ``nodes`` whose CPU is taken."""
    free = available_resources_per_node()
    return min(nodes, key=lambda one: free.get(one, {}).get("CPU", 0.0))
