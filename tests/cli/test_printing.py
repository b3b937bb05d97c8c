import msgspec
import pytest

from spinney.api.core import (
    Container,
    ContainerPort,
    Event,
    Node,
    NodeStatus,
    Pod,
    PodSpec,
    PodStatus,
    ResourceRequirements,
)
from spinney.api.grove import PodCliqueSet, PodCliqueSetSpec, PodCliqueSetTemplate
from spinney.api.meta import Condition, ObjectMeta, Status, StatusCause, StatusDetails
from spinney.api.names import PART_OF, ROLE
from spinney.api.podgang import PodGang, PodGangStatus
from spinney.cli.chat import summary_lines
from spinney.cli.completion import Answer, _read_line, endpoint
from spinney.cli.describe import age, describe_lines
from spinney.cli.get import table_rows
from spinney.cli.session import CommandError, columns, explain
from spinney.cli.status import status_lines
from spinney.clock import rfc3339
from spinney.kube.errors import error_of

NOW = 1_800_000_000.0


def a_pod(name, role="prefill", node="n0", ready=True, gpus=1, **spec):
    limits = ResourceRequirements(limits={"nvidia.com/gpu": gpus})
    container = Container(
        name="c", resources=limits, ports=[ContainerPort(container_port=8000, name="http")]
    )
    status = "True" if ready else "False"
    return Pod(
        metadata=ObjectMeta(name=name, namespace="default", labels={PART_OF: "svc", ROLE: role}),
        spec=PodSpec(node_name=node, containers=[container], **spec),
        status=PodStatus(
            phase="Running",
            pod_ip="127.10.0.2",
            conditions=[Condition(type="Ready", status=status)],
        ),
    )


def test_columns_stand_under_each_other_and_end_without_blanks():
    assert columns([["A", "LONG"], ["wide cell", None], ["x", 3]]) == [
        "A           LONG",
        "wide cell",
        "x           3",
    ]


def test_a_table_shows_wide_columns_only_when_asked():
    table = {
        "columnDefinitions": [{"name": "Name"}, {"name": "Node", "priority": 1}],
        "rows": [{"cells": ["a", "n0"], "object": {"metadata": {"namespace": "x"}}}],
    }
    assert table_rows(table, wide=False, namespaces=False) == [["NAME"], ["a"]]
    assert table_rows(table, wide=True, namespaces=True) == [
        ["NAMESPACE", "NAME", "NODE"],
        ["x", "a", "n0"],
    ]


@pytest.mark.parametrize(
    ("seconds", "want"), [(5, "5s"), (119, "119s"), (600, "10m"), (7200, "2h"), (259_200, "3d")]
)
def test_an_age_has_one_unit(seconds, want):
    assert age(rfc3339(NOW - seconds), NOW) == want


def test_describe_shows_conditions_and_the_newest_events_last():
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "creationTimestamp": rfc3339(NOW - 60)},
        "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Because"}]},
    }
    events = [
        Event(reason="Second", last_timestamp=rfc3339(NOW - 1), count=3),
        Event(reason="First", last_timestamp=rfc3339(NOW - 9), count=1),
    ]

    text = "\n".join(describe_lines(obj, events, NOW))

    assert "Created:    60s ago" in text
    assert "Because" in text
    assert text.index("First") < text.index("Second")
    assert "(x3)" in text


def test_status_counts_gpus_in_use_and_tells_what_is_pending():
    node = Node(
        metadata=ObjectMeta(name="n0", labels={"topology.kubernetes.io/rack": "r0"}),
        status=NodeStatus(allocatable={"nvidia.com/gpu": 4}),
    )
    pcs = PodCliqueSet(
        metadata=ObjectMeta(name="svc", namespace="default"),
        spec=PodCliqueSetSpec(template=PodCliqueSetTemplate()),
    )
    waiting = Condition(type="Scheduled", status="False", message="needs 12 GPUs in one rack")
    gang = PodGang(
        metadata=ObjectMeta(name="big-0", namespace="default"),
        status=PodGangStatus(conditions=[waiting]),
    )

    text = "\n".join(
        status_lines([node], [a_pod("a", gpus=2), a_pod("b", ready=False)], [pcs], [gang])
    )

    assert "3 of 4" in text
    assert "1 of 2 pods ready" in text
    assert "gang default/big-0: needs 12 GPUs in one rack" in text


def test_status_says_where_clients_are_answered():
    pcs = PodCliqueSet(
        metadata=ObjectMeta(name="svc", namespace="default"),
        spec=PodCliqueSetSpec(template=PodCliqueSetTemplate()),
    )
    router, worker = a_pod("r", "router"), a_pod("b", "both")
    elsewhere = a_pod("other")
    elsewhere.metadata.namespace = "another"
    api = "  OpenAI's API: http://127.10.0.2:8000/v1"

    def told(*pods):
        lines = status_lines([], pods, [pcs], [])
        return [line for line in lines if "API" in line or "pods ready" in line]

    assert told(router, worker, elsewhere) == ["Service default/svc: 2 of 2 pods ready", api]
    assert told(worker)[1:] == [api]
    assert told(a_pod("p"), a_pod("r", "router", ready=False))[1:] == []


def test_an_endpoint_is_the_pods_address_and_its_http_port():
    assert endpoint(a_pod("a")) == "http://127.10.0.2:8000"
    homeless = msgspec.structs.replace(a_pod("a"), status=PodStatus())
    with pytest.raises(CommandError, match="has no address yet"):
        endpoint(homeless)


def test_every_broken_rule_of_a_refusal_has_a_line():
    causes = [
        StatusCause(field="spec.a", message="bad"),
        StatusCause(field="spec.b", message="worse"),
    ]
    details = StatusDetails(kind="PodCliqueSet", name="x", causes=causes)
    text = explain(error_of(Status(code=422, reason="Invalid", details=details)))
    assert "2 rules are broken" in text
    assert "  spec.a: bad\n  spec.b: worse" in text


def test_a_stream_is_read_line_by_line():
    answer = Answer()
    lines = [
        b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n',
        b"\n",
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n',
        b'data: {"choices":[],"usage":{"completion_tokens":2}}\n',
        b"data: [DONE]\n",
    ]
    assert "".join(_read_line(line, answer) for line in lines) == "Hi"
    assert answer.usage == {"completion_tokens": 2}
    with pytest.raises(CommandError, match="gone"):
        _read_line(b'data: {"error":{"message":"gone"}}\n', answer)


def test_a_summary_names_both_workers():
    headers = {
        "x-spinney-mode": "disaggregated",
        "x-spinney-prefill-worker": "p0",
        "x-spinney-decode-worker": "d1",
    }
    lines = summary_lines(Answer(text="x", ttft_s=0.05, gaps_s=[0.01, 0.02, 0.03], headers=headers))
    assert "TTFT 50 ms, ITL 20.0 ms" in lines[0]
    assert lines[1] == "disaggregated: prefill by p0, decode by d1"
