"""The file that declares nodes, and the addresses it implies."""

from __future__ import annotations

import pytest

from spinney.errors import BadInputError
from spinney.local.cluster_config import default_nodes, parse_nodes, read_nodes
from spinney.local.nodeagent.addresses import AddressesExhaustedError, AddressRange


def test_the_default_is_two_racks_of_two_hosts_with_four_gpus() -> None:
    nodes = default_nodes()
    racks = [n.labels["topology.kubernetes.io/rack"] for n in nodes]
    assert racks == ["rack-0", "rack-0", "rack-1", "rack-1"]
    assert {n.capacity["nvidia.com/gpu"] for n in nodes} == {"4"}
    assert [n.address for n in nodes] == [f"127.10.{i}.1" for i in range(4)]
    assert nodes[0].labels["kubernetes.io/hostname"] == nodes[0].name


def test_a_file_says_labels_taints_and_sizes() -> None:
    text = """
    network: 127.20.0.0/22
    racks:
    - name: a
      labels: {row: "1"}
      hosts:
      - {name: h1, cpu: 8, memory: 16Gi, pods: 20, labels: {disk: fast}}
      - name: h2
        gpus: 8
        taints: [{key: maintenance, effect: NoSchedule}]
    """
    one, two = parse_nodes(text, source="nodes.yaml")
    assert one.capacity == {"cpu": "8", "memory": "16Gi", "pods": "20"}
    assert (one.labels["row"], one.labels["disk"]) == ("1", "fast")
    assert two.capacity["nvidia.com/gpu"] == "8"
    assert (two.taints[0].key, two.pod_range) == ("maintenance", "127.20.1.0/24")


def test_all_that_is_wrong_is_reported_with_its_path() -> None:
    text = """
    network: 10.0.0.0/8
    gpus: 4
    racks:
    - name: A_B
      hosts:
      - {name: h1, cpu: lots, gpus: -1, memry: 1Gi}
      - {name: h1, labels: {a: 1}, taints: [{effect: Sometimes}]}
      - just-a-name
    - name: empty
    """
    with pytest.raises(BadInputError) as caught:
        parse_nodes(text, source="nodes.yaml")
    message = str(caught.value)
    for path in (
        "network",
        "gpus",
        "racks[0].name",
        "racks[0].hosts[0].cpu",
        "racks[0].hosts[0].gpus",
        "racks[0].hosts[0].memry",
        "racks[0].hosts[1].name",
        "racks[0].hosts[1].labels.a",
        "racks[0].hosts[1].taints[0].effect",
        "racks[0].hosts[1].taints[0].key",
        "racks[0].hosts[2]",
        "racks[1].hosts",
    ):
        assert f"\n  {path}: " in message, f"{path} is missing in {message}"


@pytest.mark.parametrize("text", ["", "[]", "racks: {a: b", "racks: 3"])
def test_what_is_no_declaration_is_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_nodes(text, source="nodes.yaml")


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(BadInputError, match="/not/there"):
        read_nodes("/not/there.yaml")


def test_more_nodes_than_the_network_has_room_for_are_refused() -> None:
    hosts = ", ".join(f"{{name: h{i}}}" for i in range(3))
    text = f"network: 127.30.0.0/23\nracks: [{{name: r, hosts: [{hosts}]}}]"
    with pytest.raises(BadInputError, match=r"racks\[0\].hosts\[2\].*2 nodes"):
        parse_nodes(text, source="nodes.yaml")


def test_an_address_comes_round_again_only_after_all_others() -> None:
    addresses = AddressRange("127.10.3.0/24")
    first = addresses.acquire()
    assert first == "127.10.3.2"
    addresses.release(first)
    later = [addresses.acquire() for _ in range(252)]
    assert first not in later
    assert addresses.acquire() == first
    with pytest.raises(AddressesExhaustedError):
        addresses.acquire()


def test_addresses_of_an_earlier_agent_are_kept_by_their_pods_and_last_for_others() -> None:
    addresses = AddressRange("127.10.3.0/24")
    addresses.skip_past(["127.10.3.2", "127.99.0.1"])
    assert addresses.acquire() == "127.10.3.3"
    assert addresses.acquire("127.10.3.2") == "127.10.3.2"
    assert addresses.acquire("127.10.3.2") == "127.10.3.4"
