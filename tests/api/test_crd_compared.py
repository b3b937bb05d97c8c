"""The CRDs compared with Grove's, field by field and column by column, and with our own types."""

from __future__ import annotations

import asyncio
import copy
import functools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import inspect as types

from spinney.api import codec, computedomain, crd, grove, podgang
from spinney.clock import SystemClock
from spinney.ids import RandomIds
from spinney.kube.transport import ApiRequest
from spinney.local.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.meta import KubeObject

CONDITION = ".status.conditions[?(@.type=='MinAvailableBreached')].status"
PROGRESS = ".status.updateProgress."
COLUMNS: dict[type[KubeObject], dict[str, str]] = {
    grove.PodCliqueSet: {
        "Replicas": ".spec.replicas",
        "Available": ".status.availableReplicas",
        "Updated": ".status.updatedReplicas",
        "PCLQs-Updated": f"{PROGRESS}updatedPodCliquesCount",
        "PCLQs-Total": f"{PROGRESS}totalPodCliquesCount",
        "PCSGs-Updated": f"{PROGRESS}updatedPodCliqueScalingGroupsCount",
        "PCSGs-Total": f"{PROGRESS}totalPodCliqueScalingGroupsCount",
        "Age": ".metadata.creationTimestamp",
    },
    grove.PodClique: {
        "MinAvail": ".spec.minAvailable",
        "Replicas": ".spec.replicas",
        "Ready": ".status.readyReplicas",
        "Scheduled": ".status.scheduledReplicas",
        "Updated": ".status.updatedReplicas",
        "Gated": ".status.scheduleGatedReplicas",
        "MinBreached": CONDITION,
        "Age": ".metadata.creationTimestamp",
    },
    grove.PodCliqueScalingGroup: {
        "MinAvail": ".spec.minAvailable",
        "Replicas": ".spec.replicas",
        "Available": ".status.availableReplicas",
        "Scheduled": ".status.scheduledReplicas",
        "Updated": ".status.updatedReplicas",
        "PCLQs-Updated": f"{PROGRESS}updatedPodCliquesCount",
        "PCLQs-Total": f"{PROGRESS}totalPodCliquesCount",
        "MinBreached": CONDITION,
        "Age": ".metadata.creationTimestamp",
    },
    grove.ClusterTopologyBinding: {
        "Domains": ".spec.levels[*].domain",
        "Age": ".metadata.creationTimestamp",
    },
    podgang.PodGang: {"Phase": ".status.phase", "Age": ".metadata.creationTimestamp"},
}
WIDE = {
    grove.PodCliqueSet: {"PCLQs-Updated", "PCLQs-Total", "PCSGs-Updated", "PCSGs-Total"},
    grove.PodClique: {"Gated", "MinBreached"},
    grove.PodCliqueScalingGroup: {"MinBreached"},
}
"""Columns of ``-o wide``. Those of a set are narrow in Grove; here their room is the message's."""
SCALE: dict[type[KubeObject], tuple[str, str, str]] = {
    grove.PodCliqueSet: (".spec.replicas", ".status.replicas", ".status.hpaPodSelector"),
    grove.PodClique: (".spec.replicas", ".status.replicas", ".status.hpaPodSelector"),
    grove.PodCliqueScalingGroup: (".spec.replicas", ".status.replicas", ".status.selector"),
}
NAMES: dict[type[KubeObject], tuple[str, str, str]] = {
    grove.PodCliqueSet: ("podcliquesets.grove.io", "pcs", "Namespaced"),
    grove.PodClique: ("podcliques.grove.io", "pclq", "Namespaced"),
    grove.PodCliqueScalingGroup: ("podcliquescalinggroups.grove.io", "pcsg", "Namespaced"),
    grove.ClusterTopologyBinding: ("clustertopologybindings.grove.io", "ct", "Cluster"),
    podgang.PodGang: ("podgangs.scheduler.grove.io", "pg", "Namespaced"),
}
CONSTRAINT = "topologyName pack.required pack.preferred packDomain"
SHARING = "name namespace scope"
SCALING = "minReplicas maxReplicas metrics[]"
PROGRESS_OF_PART = "updateStartedAt updateEndedAt podCliqueSetGenerationHash"
ERRORS = "lastErrors[].code lastErrors[].description lastErrors[].observedAt"
CONDITIONS = (
    "conditions[].type conditions[].status conditions[].reason conditions[].message "
    "conditions[].lastTransitionTime conditions[].observedGeneration"
)


documents = functools.cache(crd.crd_documents)


def under(prefix: str, text: str) -> str:
    return " ".join(f"{prefix}.{path}" for path in text.split())


CLIQUE_SPEC = (
    f"roleName podSpec replicas minAvailable startsAfter[] {under('autoScalingConfig', SCALING)}"
)
FIELDS: dict[type[KubeObject], str] = {
    grove.PodCliqueSet: " ".join(
        (
            "spec.replicas spec.updateStrategy.type",
            under(
                "spec.template",
                " ".join(
                    (
                        "cliques[].name cliques[].labels cliques[].annotations",
                        under("cliques[].topologyConstraint", CONSTRAINT),
                        under("cliques[].resourceSharing[]", SHARING),
                        under("cliques[].spec", CLIQUE_SPEC),
                        "cliqueStartupType priorityClassName terminationDelay",
                        "headlessServiceConfig.publishNotReadyAddresses",
                        under("topologyConstraint", CONSTRAINT),
                        "resourceClaimTemplates[].name resourceClaimTemplates[].templateSpec",
                        under("resourceSharing[]", SHARING),
                        "resourceSharing[].filter.childCliqueNames[]",
                        "resourceSharing[].filter.childScalingGroupNames[]",
                        under(
                            "podCliqueScalingGroups[]",
                            f"name cliqueNames[] annotations replicas minAvailable "
                            f"{under('scaleConfig', SCALING)} "
                            f"{under('resourceSharing[]', SHARING)} "
                            "resourceSharing[].filter.childCliqueNames[] "
                            f"{under('topologyConstraint', CONSTRAINT)}",
                        ),
                    )
                ),
            ),
            under(
                "status",
                f"observedGeneration {CONDITIONS} {ERRORS} replicas updatedReplicas "
                "availableReplicas hpaPodSelector currentGenerationHash "
                + under(
                    "updateProgress",
                    "updateStartedAt updateEndedAt updatedPodCliquesCount totalPodCliquesCount "
                    "updatedPodCliqueScalingGroupsCount totalPodCliqueScalingGroupsCount "
                    "currentlyUpdating[].replicaIndex currentlyUpdating[].updateStartedAt "
                    "currentlyUpdating[].updateEndedAt",
                ),
            ),
        )
    ),
    grove.PodClique: " ".join(
        (
            under("spec", CLIQUE_SPEC),
            under(
                "status",
                f"observedGeneration {CONDITIONS} {ERRORS} replicas readyReplicas updatedReplicas "
                "scheduleGatedReplicas scheduledReplicas hpaPodSelector "
                "currentPodCliqueSetGenerationHash currentPodTemplateHash "
                + under(
                    "updateProgress",
                    f"{PROGRESS_OF_PART} podTemplateHash readyPodsSelectedToUpdate.current "
                    "readyPodsSelectedToUpdate.completed[]",
                ),
            ),
        )
    ),
    grove.PodCliqueScalingGroup: " ".join(
        (
            "spec.replicas spec.minAvailable spec.cliqueNames[]",
            under(
                "status",
                f"observedGeneration {CONDITIONS} {ERRORS} replicas scheduledReplicas "
                "availableReplicas updatedReplicas selector currentPodCliqueSetGenerationHash "
                + under(
                    "updateProgress",
                    f"{PROGRESS_OF_PART} updatedPodCliquesCount totalPodCliquesCount "
                    "readyReplicaIndicesSelectedToUpdate.current "
                    "readyReplicaIndicesSelectedToUpdate.completed[]",
                ),
            ),
        )
    ),
    grove.ClusterTopologyBinding: " ".join(
        (
            "spec.levels[].domain spec.levels[].key",
            "spec.schedulerTopologyBindings[].schedulerName",
            "spec.schedulerTopologyBindings[].topologyReference",
            f"status.observedGeneration {under('status', CONDITIONS)}",
            "status.schedulerTopologyStatuses[]",
        )
    ),
    podgang.PodGang: " ".join(
        (
            "spec.podgroups[].name spec.podgroups[].podReferences[].namespace",
            "spec.podgroups[].podReferences[].name spec.podgroups[].minReplicas",
            "spec.podgroups[].topologyConstraint.packConstraint.required",
            "spec.topologyConstraint.packConstraint.preferred",
            "spec.topologyConstraintGroupConfigs[].name",
            "spec.topologyConstraintGroupConfigs[].podGroupNames[]",
            "spec.topologyConstraintGroupConfigs[].topologyConstraint.packConstraint.required",
            "spec.priorityClassName spec.reuseReservationRef.namespace",
            "spec.reuseReservationRef.name",
            f"status.phase {under('status', CONDITIONS)} status.placementScore",
        )
    ),
}
"""Not here: ``status.podGangStatuses`` of a set, which Grove declares and never writes."""
ZERO = {
    "status.updatedReplicas",
    "status.availableReplicas",
    "status.readyReplicas",
    "status.scheduleGatedReplicas",
    "status.scheduledReplicas",
}
DEFAULTS: dict[type[KubeObject], dict[str, Any]] = {
    grove.PodCliqueSet: {
        "spec.replicas": 0,
        "spec.updateStrategy.type": "RollingRecreate",
        "spec.template.cliqueStartupType": "CliqueStartupTypeAnyOrder",
        "spec.template.headlessServiceConfig.publishNotReadyAddresses": True,
        "spec.template.podCliqueScalingGroups[].replicas": 1,
        "spec.template.podCliqueScalingGroups[].minAvailable": 1,
    },
    grove.PodCliqueScalingGroup: {"spec.replicas": 1, "spec.minAvailable": 1},
}
REQUIRED: dict[type[KubeObject], set[str]] = {
    grove.PodCliqueSet: {
        "spec.template",
        "spec.template.cliques[].name",
        "spec.template.cliques[].spec",
        "spec.template.cliques[].resourceSharing[].name",
        "spec.template.cliques[].resourceSharing[].scope",
        "spec.template.cliques[].spec.autoScalingConfig.maxReplicas",
        "spec.template.resourceClaimTemplates[].name",
        "spec.template.resourceClaimTemplates[].templateSpec",
        "spec.template.podCliqueScalingGroups[].name",
        "spec.template.podCliqueScalingGroups[].cliqueNames",
        "status.updateProgress.currentlyUpdating[].replicaIndex",
    },
    grove.PodClique: {
        "status.updateProgress.podCliqueSetGenerationHash",
        "status.updateProgress.podTemplateHash",
        "status.updateProgress.readyPodsSelectedToUpdate.current",
    },
    grove.PodCliqueScalingGroup: {
        "status.updateProgress.updateStartedAt",
        "status.updateProgress.podCliqueSetGenerationHash",
        "status.updateProgress.readyReplicaIndicesSelectedToUpdate.current",
    },
    grove.ClusterTopologyBinding: {
        "spec.levels",
        "spec.levels[].domain",
        "spec.levels[].key",
        "spec.schedulerTopologyBindings[].schedulerName",
        "spec.schedulerTopologyBindings[].topologyReference",
    },
    podgang.PodGang: {"spec.podgroups[].name", "spec.podgroups[].minReplicas"},
}
"""Where an absent value is defaulted here (replicas, roleName), it is not required."""
KINDS = [pytest.param(kind, id=kind.__name__) for kind in COLUMNS]


def version_of(kind: type[KubeObject]) -> dict[str, Any]:
    found = next(d for d in documents() if d["metadata"]["name"] == kind.RESOURCE.name)
    (version,) = found["spec"]["versions"]
    assert version["served"]
    assert version["storage"]
    return dict(version)


def at(kind: type[KubeObject], path: str) -> tuple[dict[str, Any], bool]:
    """The schema at *path*, and whether it is required there."""
    schema, required = version_of(kind)["schema"]["openAPIV3Schema"], False
    for step in path.split("."):
        name = step.removesuffix("[]")
        required = name in schema.get("required", ())
        schema = schema["properties"][name]
        if step.endswith("[]"):
            schema = schema["items"]
    return schema, required


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_groves_and_more(kind: type[KubeObject]) -> None:
    found = {c["name"]: c for c in version_of(kind)["additionalPrinterColumns"]}
    assert {name: found[name]["jsonPath"] for name in COLUMNS[kind]} == COLUMNS[kind]
    order = [name for name in found if name in COLUMNS[kind]]
    assert order == list(COLUMNS[kind])
    wide = {name for name in COLUMNS[kind] if found[name].get("priority")}
    assert wide == WIDE.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_names_scope_and_subresources_are_groves(kind: type[KubeObject]) -> None:
    name, short, scope = NAMES[kind]
    found = next(d for d in documents() if d["metadata"]["name"] == name)
    assert found["spec"]["names"]["shortNames"] == [short]
    assert found["spec"]["scope"] == scope
    subresources = version_of(kind)["subresources"]
    assert subresources["status"] == {}
    paths = tuple(subresources.get("scale", {}).values())
    assert paths == SCALE.get(kind, ())


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_groves_is_there(kind: type[KubeObject]) -> None:
    for path in FIELDS[kind].split():
        try:
            at(kind, path)
        except KeyError as error:
            raise AssertionError(f"{path}: no {error}") from error


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_and_requirements_are_groves(kind: type[KubeObject]) -> None:
    wanted = dict(DEFAULTS.get(kind, {}))
    wanted |= {path: 0 for path in ZERO if path in FIELDS[kind].split()}
    for path, default in wanted.items():
        assert at(kind, path)[0].get("default") == default, path
    for path in REQUIRED[kind]:
        name = path.removesuffix("[]")
        assert at(kind, name)[1], path


def test_what_cel_says_of_immutability_and_topology_is_on_the_set() -> None:
    schema = version_of(grove.PodCliqueSet)["schema"]["openAPIV3Schema"]
    rules = schema["x-kubernetes-validations"]
    assert [rule["fieldPath"] for rule in rules] == [
        ".spec.template.topologyConstraint",
        ".spec.template.cliques",
        ".spec.template.podCliqueScalingGroups",
    ]
    assert all(rule["optionalOldSelf"] for rule in rules)
    constraint, _ = at(grove.PodCliqueSet, "spec.template.topologyConstraint")
    assert len(constraint["x-kubernetes-validations"]) == 2
    pack, _ = at(grove.PodCliqueSet, "spec.template.topologyConstraint.pack")
    assert len(pack["x-kubernetes-validations"]) == 1


# What the types refuse, the schema refuses

Path = tuple[str | int, ...]


def inner(info: types.Type) -> types.Type:
    while True:
        if isinstance(info, types.Metadata):
            info = info.type
        elif isinstance(info, types.UnionType):
            kept = [m for m in info.types if not isinstance(m, types.NoneType)]
            if len(kept) > 1:
                return info
            info = kept[0]
        else:
            return info


def example(info: types.Type) -> Any:
    """A value with every field in it."""
    match inner(info):
        case types.StructType(fields=fields):
            return {f.encode_name: example(f.type) for f in fields}
        case types.ListType(item_type=item):
            return [example(item)]
        case types.DictType():
            return {}
        case types.LiteralType(values=values):
            return values[0]
        case types.StrType():
            return "x"
        case types.IntType(ge=low):
            return low or 1
        case types.FloatType():
            return 0.5
        case types.BoolType():
            return True
        case types.UnionType():
            return 1
        case other:
            raise AssertionError(other)


def faults(info: types.Type, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each place with a value that does not belong there."""
    match inner(info):
        case types.StructType(fields=fields):
            yield path, "text"
            for field in fields:
                yield from faults(field.type, (*path, field.encode_name))
        case types.ListType(item_type=item) as found:
            yield path, {"a": 1}
            if found.min_length:
                yield path, []
            yield from faults(item, (*path, 0))
        case types.DictType():
            yield path, 7
        case types.LiteralType():
            yield path, "nonsense"
            yield path, 3
        case types.StrType() as found:
            yield path, 12
            if found.min_length:
                yield path, ""
            if found.max_length:
                yield path, "x" * (found.max_length + 1)
            if found.pattern:
                yield path, "-#-"
        case types.IntType() as found:
            yield path, "twelve"
            yield path, 1.5
            if found.ge is not None:
                yield path, found.ge - 1
            if found.le is not None:
                yield path, found.le + 1
        case types.FloatType():
            yield path, "much"
        case types.BoolType():
            yield path, "yes"
        case types.UnionType():
            yield path, []


def put(obj: Any, path: Path, value: Any) -> None:
    for step in path[:-1]:
        obj = obj[step]
    obj[path[-1]] = value


ALL = [*COLUMNS, computedomain.ComputeDomain]


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in ALL])
def test_what_the_types_refuse_the_server_refuses_with_the_field(kind: type[KubeObject]) -> None:
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    parts = {f.encode_name: f.type for f in info.fields if f.encode_name in ("spec", "status")}
    whole = {
        "apiVersion": kind.RESOURCE.api_version,
        "kind": kind.RESOURCE.kind,
        "metadata": {"name": "x"},
        **{name: example(of) for name, of in parts.items()},
    }
    codec.from_dict(kind, whole)  # The example itself is right.
    found = [(p, v) for name, of in parts.items() for p, v in faults(of, (name,))]
    assert len(found) > 5

    async def main() -> None:
        api = ApiServer(SystemClock(), RandomIds(), definitions=documents())
        namespace = "default" if kind.RESOURCE.namespaced else None
        where = kind.RESOURCE.path(namespace)
        good = await api.send(ApiRequest("POST", where, body=msgspec.json.encode(whole)))
        assert good.status == 201, good.body
        for path, value in found:
            broken = copy.deepcopy(whole)
            broken["metadata"]["name"] = "y"
            put(broken, path, value)
            with pytest.raises(codec.DecodeError):
                codec.from_dict(kind, broken)
            if path[0] == "status":
                broken["metadata"] = msgspec.json.decode(good.body)["metadata"]
                to = kind.RESOURCE.path(namespace, "x", "status")
                answer = await api.send(ApiRequest("PUT", to, body=msgspec.json.encode(broken)))
            else:
                answer = await api.send(ApiRequest("POST", where, body=msgspec.json.encode(broken)))
            assert answer.status == 422, (path, value, answer.body)
            assert str(path[-1] if isinstance(path[-1], str) else path[-2]).encode() in answer.body

    with asyncio.Runner() as runner:
        runner.run(main())
