"""The cluster of cluster.yaml on AWS with nodes that train together: prints a file for `ray up`.

    python deploy/efa.py --subnet subnet-0123 --group sg-0123 > cluster-efa.yaml

Without it a p5.48xlarge has one of its 32 network cards, 100 of 3,200 Gbit/s, and nodes may lie in different zones.
What is needed besides: a subnet of one zone whose nodes reach the internet by NAT (no interface of such a node gets a
public address), a security group that lets everything through from and to itself, and the placement group:

    aws ec2 create-placement-group --group-name qzhou-train --strategy cluster

Facts: "Maximize network bandwidth on Amazon EC2 instances with multiple network cards" (Amazon EC2 user guide), "Get
started with EFA and NCCL". Checked against them and Ray's schema; not yet started on an account.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"
CARDS = 32  # of a p5.48xlarge
PLACEMENT_GROUP = "qzhou-train"
INSTALLER = "https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz"
# libfabric and NCCL's plugin for it; the kernel's part is in the machine's image
INSTALL = (
    f"curl -fsSL {INSTALLER} | tar xz -C /tmp && cd /tmp/aws-efa-installer && "
    "sudo ./efa_installer.sh --yes --skip-kmod --skip-limit-conf --no-verify"
)
LIBRARIES = "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib"
RUN_OPTIONS = [
    "--device=/dev/infiniband",
    "--ulimit memlock=-1:-1",
    "--env FI_PROVIDER=efa",
    f"--env LD_LIBRARY_PATH={LIBRARIES}",
]


def with_efa(cluster: dict[str, Any], *, subnet: str, group: str) -> dict[str, Any]:
    """The cluster, whose nodes of the type ``train`` have all their network cards and lie next to each other.

    Args:
        cluster: Content of cluster.yaml.
        subnet: Of one zone.
        group: Security group that is open to itself.
    """
    train = cluster["available_node_types"]["train"]
    interfaces = [
        {
            "NetworkCardIndex": card,
            "DeviceIndex": min(card, 1),
            "InterfaceType": "efa",
            "SubnetId": subnet,
            "Groups": [group],
            "DeleteOnTermination": True,
        }
        for card in range(CARDS)
    ]
    node = train["node_config"] | {"NetworkInterfaces": interfaces, "Placement": {"GroupName": PLACEMENT_GROUP}}
    docker = train["docker"] | {"worker_run_options": RUN_OPTIONS}
    setup = [INSTALL, *cluster["worker_setup_commands"]]
    changed = train | {"node_config": node, "docker": docker, "worker_setup_commands": setup}
    return cluster | {"available_node_types": cluster["available_node_types"] | {"train": changed}}


def main() -> None:
    """Print the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnet", required=True, help="of one zone, for the nodes that train")
    parser.add_argument("--group", required=True, help="security group that is open to itself")
    asked = parser.parse_args()
    cluster = with_efa(yaml.safe_load(CLUSTER.read_text("utf-8")), subnet=asked.subnet, group=asked.group)
    yaml.safe_dump(cluster, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
