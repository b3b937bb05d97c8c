"""The tables of ``kubectl get`` for built-in kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spinney.local.apiserver.kinds import Column
from spinney.local.apiserver.printing import NONE, UNKNOWN, age

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.api.resource import Unstructured


def _name(obj: Unstructured, _now: float) -> str:
    name: str = obj["metadata"]["name"]
    return name


def _age(obj: Unstructured, now: float) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _field(*path: str, otherwise: Any = "") -> Callable[[Unstructured, float], Any]:
    def cell(obj: Unstructured, _now: float) -> Any:
        value: Any = obj
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        return otherwise if value is None or value == "" else value

    return cell


NAME = Column("Name", _name, format="name", description="Name must be unique within a namespace.")
AGE = Column("Age", _age, description="How long ago the object was created.")
NAME_AGE = (NAME, AGE)


# Pods


def pod_status(obj: Unstructured) -> tuple[int, int, str, int, str]:
    """Return ready and all containers, the status in a word, restarts, last restart's time."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    regular = spec.get("containers") or []
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    reason = status.get("reason") or status.get("phase") or UNKNOWN
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    waiting, restarts, last = _init_status(spec, status)
    ready = sum(
        bool(s.get("ready"))
        for s in status.get("initContainerStatuses") or ()
        if s.get("name") in {c.get("name") for c in sidecars}
    )
    if waiting:
        reason = waiting
    else:
        reason, ready, restarts, last = _main_status(status, reason, ready, restarts, last)
    if "deletionTimestamp" in obj["metadata"]:
        if status.get("reason") == "NodeLost":
            reason = "Unknown"
        elif status.get("phase") not in ("Succeeded", "Failed"):
            reason = "Terminating"
    return ready, len(regular) + len(sidecars), reason, restarts, last


def _init_status(spec: Unstructured, status: Unstructured) -> tuple[str, int, str]:
    """Return what the init containers wait for, "" if they are done; restarts so far."""
    declared = {c.get("name"): c for c in spec.get("initContainers") or ()}
    restarts, last = 0, ""
    statuses = status.get("initContainerStatuses") or []
    for index, container in enumerate(statuses):
        sidecar = declared.get(container.get("name"), {}).get("restartPolicy") == "Always"
        restarts += int(container.get("restartCount") or 0)
        last = max(last, _finished(container))
        state = container.get("state") or {}
        terminated = state.get("terminated")
        if terminated is not None and terminated.get("exitCode") == 0:
            continue
        if sidecar and container.get("started"):
            continue
        if terminated is not None:
            return f"Init:{_terminated(terminated)}", restarts, last
        reason = (state.get("waiting") or {}).get("reason")
        if reason and reason != "PodInitializing":
            return f"Init:{reason}", restarts, last
        return f"Init:{index}/{len(declared)}", restarts, last
    return "", restarts, last


def _main_status(
    status: Unstructured, reason: str, ready: int, restarts: int, last: str
) -> tuple[str, int, int, str]:
    running = False
    statuses = status.get("containerStatuses") or []
    for container in reversed(statuses):
        restarts += int(container.get("restartCount") or 0)
        last = max(last, _finished(container))
        state = container.get("state") or {}
        waiting, terminated = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated is not None:
            reason = _terminated(terminated)
        elif container.get("ready") and state.get("running") is not None:
            running = True
            ready += 1
    if reason == "Completed" and running:
        conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
        reason = "Running" if conditions.get("Ready") == "True" else "NotReady"
    return reason, ready, restarts, last


def _terminated(state: Unstructured) -> str:
    if state.get("reason"):
        return str(state["reason"])
    if state.get("signal"):
        return f"Signal:{state['signal']}"
    return f"ExitCode:{state.get('exitCode', 0)}"


def _finished(container: Unstructured) -> str:
    terminated = (container.get("lastState") or {}).get("terminated") or {}
    return str(terminated.get("finishedAt") or "")


def _ready(obj: Unstructured, _now: float) -> str:
    ready, total, *_ = pod_status(obj)
    return f"{ready}/{total}"


def _restarts(obj: Unstructured, now: float) -> str:
    *_, restarts, last = pod_status(obj)
    return f"{restarts} ({age(last, now)} ago)" if restarts and last else str(restarts)


def _gates(obj: Unstructured, _now: float) -> str:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    gates = [gate.get("conditionType") for gate in spec.get("readinessGates") or ()]
    if not gates:
        return NONE
    states = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    return f"{sum(states.get(gate) == 'True' for gate in gates)}/{len(gates)}"


PODS = (
    NAME,
    Column("Ready", _ready, description="Containers that are ready, of all."),
    Column("Status", lambda obj, _now: pod_status(obj)[2], description="The pod in a word."),
    Column("Restarts", _restarts, description="How often its containers were started again."),
    AGE,
    Column("IP", _field("status", "podIP", otherwise=NONE), priority=1),
    Column("Node", _field("spec", "nodeName", otherwise=NONE), priority=1),
    Column("Nominated Node", _field("status", "nominatedNodeName", otherwise=NONE), priority=1),
    Column("Readiness Gates", _gates, priority=1),
)


# Nodes


def _node_status(obj: Unstructured, _now: float) -> str:
    status = obj.get("status") or {}
    ready = [c for c in status.get("conditions") or () if c.get("type") == "Ready"]
    words = ["Unknown"]
    if ready:
        words = ["Ready" if ready[0].get("status") == "True" else "NotReady"]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _roles(obj: Unstructured, _now: float) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(key[len(prefix) :] for key in labels if key.startswith(prefix))
    return ",".join(filter(None, roles)) or NONE


def _address(kind: str) -> Callable[[Unstructured, float], str]:
    def cell(obj: Unstructured, _now: float) -> str:
        for address in (obj.get("status") or {}).get("addresses") or ():
            if address.get("type") == kind:
                return str(address.get("address"))
        return NONE

    return cell


def _info(name: str) -> Callable[[Unstructured, float], Any]:
    return _field("status", "nodeInfo", name, otherwise=UNKNOWN)


NODES = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _roles),
    AGE,
    Column("Version", _field("status", "nodeInfo", "kubeletVersion")),
    Column("Internal-IP", _address("InternalIP"), priority=1),
    Column("External-IP", _address("ExternalIP"), priority=1),
    Column("OS-Image", _info("osImage"), priority=1),
    Column("Kernel-Version", _info("kernelVersion"), priority=1),
    Column("Container-Runtime", _info("containerRuntimeVersion"), priority=1),
)

NAMESPACES = (NAME, Column("Status", _field("status", "phase")), AGE)


# Services


def _ports(obj: Unstructured, _now: float) -> str:
    ports = []
    for port in (obj.get("spec") or {}).get("ports") or ():
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        ports.append(f"{port.get('port')}{node_port}/{port.get('protocol', 'TCP')}")
    return ",".join(ports) or NONE


def _external(obj: Unstructured, _now: float) -> str:
    spec = obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName"))
    if spec.get("externalIPs"):
        return ",".join(spec["externalIPs"])
    return "<pending>" if spec.get("type") == "LoadBalancer" else NONE


def _selector(obj: Unstructured, _now: float) -> str:
    selector = (obj.get("spec") or {}).get("selector") or {}
    return ",".join(f"{k}={v}" for k, v in sorted(selector.items())) or NONE


SERVICES = (
    NAME,
    Column("Type", _field("spec", "type")),
    Column("Cluster-IP", _field("spec", "clusterIP", otherwise=NONE)),
    Column("External-IP", _external),
    Column("Port(s)", _ports),
    AGE,
    Column("Selector", _selector, priority=1),
)


# Others


def _last_seen(obj: Unstructured, now: float) -> str:
    series = obj.get("series") or {}
    stamp = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    return age(stamp or obj.get("firstTimestamp"), now)


def _involved(obj: Unstructured, _now: float) -> str:
    about = obj.get("involvedObject") or {}
    kind = str(about.get("kind", "")).lower()
    return f"{kind}/{about['name']}" if about.get("name") else kind


def _source(obj: Unstructured, _now: float) -> str:
    source = obj.get("source") or {}
    parts = [source.get("component") or obj.get("reportingComponent"), source.get("host")]
    return ", ".join(filter(None, parts))


EVENTS = (
    Column("Last Seen", _last_seen),
    Column("Type", _field("type")),
    Column("Reason", _field("reason")),
    Column("Object", _involved),
    Column("Subobject", _field("involvedObject", "fieldPath"), priority=1),
    Column("Source", _source, priority=1),
    Column("Message", lambda obj, _now: str(obj.get("message") or "").strip()),
    Column(
        "First Seen",
        lambda obj, now: age(obj.get("firstTimestamp") or obj.get("eventTime"), now),
        priority=1,
    ),
    Column("Count", _field("count", otherwise=1), type="integer", priority=1),
    Column("Name", _name, format="name", priority=1),
)

LEASES = (NAME, Column("Holder", _field("spec", "holderIdentity")), AGE)


def _count(*fields: str) -> Callable[[Unstructured, float], int]:
    return lambda obj, _now: sum(len(obj.get(name) or ()) for name in fields)


CONFIG_MAPS = (NAME, Column("Data", _count("data", "binaryData"), type="integer"), AGE)
SECRETS = (
    NAME,
    Column("Type", _field("type")),
    Column("Data", _count("data"), type="integer"),
    AGE,
)


def _ready_replicas(obj: Unstructured, _now: float) -> str:
    wanted = (obj.get("spec") or {}).get("replicas", 1)
    return f"{(obj.get('status') or {}).get('readyReplicas', 0)}/{wanted}"


WORKLOADS = (
    NAME,
    Column("Ready", _ready_replicas),
    Column("Up-to-date", _field("status", "updatedReplicas", otherwise=0), type="integer"),
    Column("Available", _field("status", "availableReplicas", otherwise=0), type="integer"),
    AGE,
)
PRIORITY_CLASSES = (
    NAME,
    Column("Value", _field("value", otherwise=0), type="integer"),
    Column("Global-Default", _field("globalDefault", otherwise=False), type="boolean"),
    AGE,
)
DEFINITIONS = (
    NAME,
    Column(
        "Created At",
        lambda obj, _now: obj["metadata"].get("creationTimestamp"),
        type="date",
    ),
)
