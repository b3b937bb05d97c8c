"""CustomResourceDefinitions, generated from the typed objects.

``python -m spinney.api.crd`` writes one YAML file per kind into ``crds/`` beside this module;
with ``--check`` it only says whether they are current, which CI asks. `crd_documents` reads them.

What types cannot say (defaults of the schema, keys of lists, printer columns, fields of a
pod that Spinney does not use but users write) stands in the tables of this module.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import textwrap
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from msgspec import inspect as types

from spinney.api import computedomain, core, grove, podgang, podgroup, queue

if TYPE_CHECKING:
    from spinney.api.meta import KubeObject

Schema = dict[str, Any]

_LIST_KEYS: dict[tuple[type, str], list[str]] = {
    (grove.PodCliqueSetTemplate, "cliques"): ["name"],
    (grove.PodCliqueSetStatus, "conditions"): ["type"],
    (grove.PodCliqueStatus, "conditions"): ["type"],
    (grove.PodCliqueScalingGroupStatus, "conditions"): ["type"],
    (grove.ClusterTopologyBindingStatus, "conditions"): ["type"],
    (podgang.PodGangStatus, "conditions"): ["type"],
    (core.PodSpec, "containers"): ["name"],
    (core.PodSpec, "initContainers"): ["name"],
    (core.PodSpec, "schedulingGates"): ["name"],
    (core.Container, "env"): ["name"],
}
_DEFAULTS: dict[tuple[type, str], Any] = {
    (grove.PodCliqueSetSpec, "replicas"): 0,
    (grove.PodCliqueSetTemplate, "cliqueStartupType"): "CliqueStartupTypeAnyOrder",
    (grove.UpdateStrategy, "type"): "RollingRecreate",
    (grove.HeadlessServiceConfig, "publishNotReadyAddresses"): True,
    (grove.ScalingGroupTemplate, "replicas"): 1,
    (grove.ScalingGroupTemplate, "minAvailable"): 1,
    (grove.PodCliqueScalingGroupSpec, "replicas"): 1,
    (grove.PodCliqueScalingGroupSpec, "minAvailable"): 1,
    (grove.PodCliqueSetStatus, "availableReplicas"): 0,
    (grove.PodCliqueSetStatus, "updatedReplicas"): 0,
    (grove.PodCliqueStatus, "readyReplicas"): 0,
    (grove.PodCliqueStatus, "scheduledReplicas"): 0,
    (grove.PodCliqueStatus, "scheduleGatedReplicas"): 0,
    (grove.PodCliqueStatus, "updatedReplicas"): 0,
    (grove.PodCliqueScalingGroupStatus, "availableReplicas"): 0,
    (grove.PodCliqueScalingGroupStatus, "scheduledReplicas"): 0,
    (grove.PodCliqueScalingGroupStatus, "updatedReplicas"): 0,
}
_NO_PACK_DOMAIN = "!has({0}.topologyConstraint) || !has({0}.topologyConstraint.packDomain)"


def _of_new_sets(rule: str, path: str) -> dict[str, Any]:
    """Return a rule that holds for a set when it is created, and not when it is updated."""
    return {
        "rule": f"oldSelf.hasValue() || {rule}",
        "optionalOldSelf": True,
        "message": "packDomain is deprecated; write pack.required instead",
        "reason": "FieldValueForbidden",
        "fieldPath": path,
    }


_RULES: dict[type, list[dict[str, Any]]] = {
    grove.PodCliqueSet: [
        _of_new_sets(
            _NO_PACK_DOMAIN.format("self.spec.template"), ".spec.template.topologyConstraint"
        ),
        _of_new_sets(
            "!has(self.spec.template.cliques) || self.spec.template.cliques.all(c, "
            f"{_NO_PACK_DOMAIN.format('c')})",
            ".spec.template.cliques",
        ),
        _of_new_sets(
            "!has(self.spec.template.podCliqueScalingGroups) || "
            "self.spec.template.podCliqueScalingGroups.all(g, "
            f"{_NO_PACK_DOMAIN.format('g')})",
            ".spec.template.podCliqueScalingGroups",
        ),
    ],
    grove.TopologyConstraint: [
        {
            "rule": "has(self.pack) || has(self.packDomain)",
            "message": "name a domain in pack.required or pack.preferred",
            "reason": "FieldValueRequired",
            "fieldPath": ".pack",
        },
        {
            "rule": "!(has(self.packDomain) && has(self.pack) && has(self.pack.required))",
            "message": "packDomain and pack.required say the same; write pack.required only",
        },
    ],
    grove.PackConstraint: [
        {
            "rule": "has(self.required) || has(self.preferred)",
            "message": "set required, preferred, or both",
        }
    ],
}
_ALSO_KNOWN: dict[type, str] = {
    core.PodSpec: (
        "activeDeadlineSeconds automountServiceAccountToken dnsConfig dnsPolicy "
        "enableServiceLinks ephemeralContainers hostAliases hostIPC hostPID hostUsers "
        "hostnameOverride imagePullSecrets os readinessGates resources runtimeClassName "
        "securityContext serviceAccount setHostnameAsFQDN shareProcessNamespace workloadRef"
    ),
    core.Container: (
        "imagePullPolicy resizePolicy restartPolicyRules securityContext stdin stdinOnce "
        "terminationMessagePath terminationMessagePolicy tty volumeDevices"
    ),
    core.ContainerPort: "hostIP",
}
"""Fields of the Kubernetes API that Spinney passes on without reading them."""


@dataclass(frozen=True, slots=True)
class _Kind:
    cls: type[KubeObject]
    columns: tuple[tuple[str, str, str, int], ...]
    """Name, type, JSON path, priority."""
    scale: tuple[str, str, str] | None = None
    """Paths of wanted replicas, replicas there, and selector."""


_AGE = ("Age", "date", ".metadata.creationTimestamp", 0)
_BREACHED = (
    "MinBreached",
    "string",
    ".status.conditions[?(@.type=='MinAvailableBreached')].status",
    1,
)
_KINDS = (
    _Kind(
        grove.PodCliqueSet,
        (
            ("Replicas", "integer", ".spec.replicas", 0),
            ("Available", "integer", ".status.availableReplicas", 0),
            ("Updated", "integer", ".status.updatedReplicas", 0),
            ("Healthy", "string", ".status.conditions[?(@.type=='Available')].status", 0),
            ("Update", "string", ".status.conditions[?(@.type=='Progressing')].reason", 0),
            ("Message", "string", ".status.conditions[?(@.type=='Available')].message", 0),
            ("PCLQs-Updated", "integer", ".status.updateProgress.updatedPodCliquesCount", 1),
            ("PCLQs-Total", "integer", ".status.updateProgress.totalPodCliquesCount", 1),
            (
                "PCSGs-Updated",
                "integer",
                ".status.updateProgress.updatedPodCliqueScalingGroupsCount",
                1,
            ),
            (
                "PCSGs-Total",
                "integer",
                ".status.updateProgress.totalPodCliqueScalingGroupsCount",
                1,
            ),
            _AGE,
        ),
        (".spec.replicas", ".status.replicas", ".status.hpaPodSelector"),
    ),
    _Kind(
        grove.PodClique,
        (
            ("MinAvail", "integer", ".spec.minAvailable", 0),
            ("Replicas", "integer", ".spec.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            ("Scheduled", "integer", ".status.scheduledReplicas", 0),
            ("Updated", "integer", ".status.updatedReplicas", 0),
            ("Gated", "integer", ".status.scheduleGatedReplicas", 1),
            _BREACHED,
            _AGE,
        ),
        (".spec.replicas", ".status.replicas", ".status.hpaPodSelector"),
    ),
    _Kind(
        grove.PodCliqueScalingGroup,
        (
            ("MinAvail", "integer", ".spec.minAvailable", 0),
            ("Replicas", "integer", ".spec.replicas", 0),
            ("Available", "integer", ".status.availableReplicas", 0),
            ("Scheduled", "integer", ".status.scheduledReplicas", 0),
            ("Updated", "integer", ".status.updatedReplicas", 0),
            ("PCLQs-Updated", "integer", ".status.updateProgress.updatedPodCliquesCount", 0),
            ("PCLQs-Total", "integer", ".status.updateProgress.totalPodCliquesCount", 0),
            _BREACHED,
            _AGE,
        ),
        (".spec.replicas", ".status.replicas", ".status.selector"),
    ),
    _Kind(
        grove.ClusterTopologyBinding,
        (("Domains", "string", ".spec.levels[*].domain", 0), _AGE),
    ),
    _Kind(
        podgang.PodGang,
        (
            ("Phase", "string", ".status.phase", 0),
            ("Scheduled", "string", ".status.conditions[?(@.type=='Scheduled')].status", 0),
            ("Score", "number", ".status.placementScore", 0),
            ("Message", "string", ".status.conditions[?(@.type=='Scheduled')].message", 1),
            _AGE,
        ),
    ),
    _Kind(
        podgroup.PodGroup,
        (
            ("MinMember", "integer", ".spec.minMember", 0),
            ("Queue", "string", ".spec.queue", 0),
            _AGE,
        ),
    ),
    _Kind(
        computedomain.ComputeDomain,
        (
            ("Nodes", "integer", ".spec.numNodes", 0),
            ("Status", "string", ".status.status", 0),
            _AGE,
        ),
    ),
    _Kind(
        queue.Queue,
        (
            ("Priority", "integer", ".spec.priority", 0),
            ("Parent", "string", ".spec.parentQueue", 0),
            ("Children", "string", ".status.childQueues", 1),
            ("DisplayName", "string", ".spec.displayName", 1),
            _AGE,
        ),
    ),
)


OWN_GROUPS = frozenset({grove.GROUP, podgang.GROUP})
"""API groups that Spinney defines; kinds of others are there for clusters without them."""


def crd_documents(*, others: bool = True) -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions of all kinds that Spinney reads, ready to create.

    Without *others* only of its own groups: where KAI or NVIDIA's driver is installed, its
    definitions are the ones that count.
    """
    folder = resources.files("spinney.api").joinpath("crds")
    files = sorted(folder.iterdir(), key=lambda entry: entry.name)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = [yaml.load(f.read_text(), loader) for f in files if f.name.endswith(".yaml")]
    return [crd for crd in found if others or crd["spec"]["group"] in OWN_GROUPS]


def generate(kind: _Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one kind."""
    resource = kind.cls.RESOURCE
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        keys = ("specReplicasPath", "statusReplicasPath", "labelSelectorPath")
        subresources["scale"] = dict(zip(keys, kind.scale, strict=True))
    columns = [
        {"name": name, "type": type_, "jsonPath": path} | ({"priority": prio} if prio else {})
        for name, type_, path, prio in kind.columns
    ]
    version = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(kind.cls)},
        "subresources": subresources,
        "additionalPrinterColumns": columns,
    }
    names = {
        "kind": resource.kind,
        "listKind": f"{resource.kind}List",
        "plural": resource.plural,
        "singular": resource.singular,
        "shortNames": list(resource.short_names),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name},
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }


def _root(cls: type[KubeObject]) -> Schema:
    schema = _struct(cast("types.StructType", types.type_info(cls)))
    schema["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    return schema


def _struct(info: types.StructType) -> Schema:
    cls = info.cls
    notes = _attribute_docs(cls)
    properties: Schema = {}
    for field in info.fields:
        schema = _schema(field.type)
        if note := notes.get(field.name):
            schema["description"] = note
        if keys := _LIST_KEYS.get((cls, field.encode_name)):
            schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
        if (cls, field.encode_name) in _DEFAULTS:
            schema["default"] = _DEFAULTS[(cls, field.encode_name)]
        properties[field.encode_name] = schema
    for name in _ALSO_KNOWN.get(cls, "").split():
        properties[name] = {"x-kubernetes-preserve-unknown-fields": True}
    result: Schema = {"type": "object", "properties": properties}
    if doc := inspect.getdoc(cls):
        result["description"] = " ".join(doc.split())
    required = [f.encode_name for f in info.fields if f.required]
    if required:
        result["required"] = required
    if rules := _RULES.get(cls):
        result["x-kubernetes-validations"] = rules
    return result


def _schema(info: types.Type) -> Schema:
    match info:
        case types.Metadata(type=inner, extra=extra):
            if extra and "schema_of" in extra:
                return _schema(types.type_info(extra["schema_of"]))
            return _schema(inner)
        case types.StructType():
            return _struct(info)
        case types.UnionType(types=members):
            return _union([m for m in members if not isinstance(m, types.NoneType)])
        case types.ListType(item_type=item):
            limits = {"minItems": info.min_length, "maxItems": info.max_length}
            return {"type": "array", "items": _schema(item), **_without_none(limits)}
        case types.DictType(value_type=value):
            if isinstance(value, types.AnyType):
                return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            return {"type": "object", "additionalProperties": _schema(value)}
        case types.LiteralType(values=values):
            return {"type": "string", "enum": list(values)}
        case types.StrType():
            return _string(info)
        case types.IntType():
            return {"type": "integer", "format": "int64", **_bounds(info)}
        case types.FloatType():
            return {"type": "number", **_bounds(info)}
        case types.BoolType():
            return {"type": "boolean"}
        case types.AnyType():
            return {"x-kubernetes-preserve-unknown-fields": True}
    raise TypeError(f"no schema for {info!r}: add a case for it")


def _union(members: list[types.Type]) -> Schema:
    if len(members) == 1:
        return _schema(members[0])
    kinds = {type(m) for m in members}
    if kinds <= {types.IntType, types.StrType, types.FloatType}:
        return {"x-kubernetes-int-or-string": True}
    raise TypeError(f"no schema for a union of {members!r}")


def _string(info: types.StrType) -> Schema:
    limits = {"minLength": info.min_length, "maxLength": info.max_length, "pattern": info.pattern}
    return {"type": "string", **_without_none(limits)}


def _bounds(info: types.IntType | types.FloatType) -> Schema:
    """Return the limits of a number; raise TypeError for one that has no word here yet."""
    if (info.gt, info.lt, info.multiple_of) != (None, None, None):
        raise TypeError(f"no schema for the limits of {info!r}: use ge and le, or add a case")
    return _without_none({"minimum": info.ge, "maximum": info.le})


def _without_none(values: Schema) -> Schema:
    return {key: value for key, value in values.items() if value is not None}


@functools.cache
def _attribute_docs(cls: type) -> dict[str, str]:
    """Return the strings that stand under the attributes of *cls* in its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = cast("ast.ClassDef", tree.body[0]).body
    docs = {}
    for attribute, after in itertools.pairwise(body):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[attribute.target.id] = " ".join(str(after.value.value).split())
    return docs


def _render(kind: _Kind) -> str:
    head = "# Generated by `python -m spinney.api.crd` from the types; do not edit.\n"
    return head + yaml.safe_dump(generate(kind), sort_keys=False, width=100, allow_unicode=True)


def main(arguments: list[str]) -> int:
    """Write the YAML files, or with ``--check`` say which are not current; return the exit code."""
    folder = Path(__file__).parent / "crds"
    stale = []
    for kind in _KINDS:
        path = folder / f"{kind.cls.RESOURCE.name}.yaml"
        text = _render(kind)
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if "--check" not in arguments:
            folder.mkdir(exist_ok=True)
            path.write_text(text)
    verb = "stale" if "--check" in arguments else "written"
    sys.stdout.write(f"crds: {len(_KINDS)} kinds, {verb}: {', '.join(stale) or 'none'}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
