"""What pods and volumes say about nodes and other pods, read from the wire form into values.

Manifests carry affinity as nested objects. They are decoded as a whole, so that what is
written wrong is named by its path, and become the frozen terms that a `Shape` is compared by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Expression:
    """One condition on one label, as node affinity and pod selectors write it."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether *labels* fulfil it; an operator nobody knows matches nothing."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return _compares(value, self.operator, self.values)
            case _:
                return False


def _compares(value: str | None, operator: str, values: tuple[str, ...]) -> bool:
    try:
        have, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return have > bound if operator == "Gt" else have < bound


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """Conditions on a node that must all hold; a term without any matches nothing."""

    labels: tuple[Expression, ...] = ()
    fields: tuple[Expression, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Tell whether the node *name* with *labels* fulfils the term."""
        if not self.labels and not self.fields:
            return False
        fields = {"metadata.name": name}
        return all(e.matches(labels) for e in self.labels) and all(
            e.matches(fields) for e in self.fields
        )


@dataclass(frozen=True, slots=True)
class PodTerm:
    """Which other pods count, and the node label within whose domain they do."""

    topology_key: str
    selector: tuple[Expression, ...] | None
    """None matches no pod; empty matches all."""
    namespaces: tuple[str, ...]
    """Empty: all namespaces."""

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Tell whether a pod of *namespace* with *labels* counts."""
        if self.selector is None or (self.namespaces and namespace not in self.namespaces):
            return False
        return all(e.matches(labels) for e in self.selector)


@dataclass(frozen=True, slots=True)
class Spread:
    """A topology spread constraint: how even pods are over the domains of a label."""

    term: PodTerm
    """The pods that are counted, and the label."""
    max_skew: int = 1
    hard: bool = True
    """Whether it is a rule; a preference otherwise."""
    min_domains: int = 1
    honors_affinity: bool = True
    """Whether only nodes that the pod's node selector and affinity allow are looked at."""
    honors_taints: bool = False


@dataclass(frozen=True, slots=True)
class Affinity:
    """All that a pod's affinity says."""

    node_required: tuple[NodeTerm, ...] | None = None
    node_preferred: tuple[tuple[int, NodeTerm], ...] = ()
    pod_affinity: tuple[PodTerm, ...] = ()
    pod_anti_affinity: tuple[PodTerm, ...] = ()
    pod_preferred: tuple[tuple[int, PodTerm], ...] = ()
    """Weights; those of preferred anti-affinity are negative."""


# The wire form


class _Wire(msgspec.Struct, rename="camel"):
    pass


class _Expression(_Wire):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class _NodeTerm(_Wire):
    match_expressions: list[_Expression] | None = None
    match_fields: list[_Expression] | None = None


class _NodeSelector(_Wire):
    node_selector_terms: list[_NodeTerm] | None = None


class _PreferredNode(_Wire):
    weight: int = 1
    preference: _NodeTerm = msgspec.field(default_factory=_NodeTerm)


class _LabelSelector(_Wire):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Expression] | None = None


class _PodTerm(_Wire):
    topology_key: str = ""
    label_selector: _LabelSelector | None = None
    namespaces: list[str] | None = None
    namespace_selector: dict[str, Any] | None = None


class _WeightedPodTerm(_Wire):
    weight: int = 1
    pod_affinity_term: _PodTerm = msgspec.field(default_factory=_PodTerm)


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


class _NodeAffinity(msgspec.Struct):
    required: _NodeSelector | None = msgspec.field(name=_REQUIRED, default=None)
    preferred: list[_PreferredNode] | None = msgspec.field(name=_PREFERRED, default=None)


class _PodAffinity(msgspec.Struct):
    required: list[_PodTerm] | None = msgspec.field(name=_REQUIRED, default=None)
    preferred: list[_WeightedPodTerm] | None = msgspec.field(name=_PREFERRED, default=None)


class _Affinity(_Wire):
    node_affinity: _NodeAffinity | None = None
    pod_affinity: _PodAffinity | None = None
    pod_anti_affinity: _PodAffinity | None = None


class _Spread(_PodTerm):
    max_skew: int = 1
    when_unsatisfiable: str = "DoNotSchedule"
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
    match_label_keys: list[str] | None = None


def _read(what: str, raw: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).rpartition(" - at ")
        path = where.strip("`").removeprefix("$")
        message = f"{what}{path}: {text}" if text else f"{what}: {error}"
        raise BadInputError(message) from error


def affinity_of(raw: Mapping[str, Any], namespace: str) -> Affinity:
    """Return the affinity of a pod of *namespace*; raise BadInputError that names the field."""
    if not raw:
        return Affinity()
    found = _read("spec.affinity", raw, _Affinity)
    node = found.node_affinity or _NodeAffinity()
    together = found.pod_affinity or _PodAffinity()
    apart = found.pod_anti_affinity or _PodAffinity()
    required = None
    if node.required is not None:
        required = tuple(_node_term(term) for term in node.required.node_selector_terms or ())
    return Affinity(
        required,
        tuple((line.weight, _node_term(line.preference)) for line in node.preferred or ()),
        tuple(_pod_term(term, namespace) for term in together.required or ()),
        tuple(_pod_term(term, namespace) for term in apart.required or ()),
        (
            *_weighted(together.preferred, namespace, 1),
            *_weighted(apart.preferred, namespace, -1),
        ),
    )


def label_selector(selector: Mapping[str, Any]) -> tuple[Expression, ...]:
    """Return the conditions of a ``labelSelector``; without any it matches everything."""
    return _selector(_read("selector", selector, _LabelSelector)) or ()


def node_terms(terms: Iterable[Mapping[str, Any]] | None) -> tuple[NodeTerm, ...]:
    """Return ``nodeSelectorTerms`` as values; raise BadInputError that names the field."""
    found = _read("nodeSelectorTerms", list(terms or ()), list[_NodeTerm])
    return tuple(_node_term(term) for term in found)


def spreads_of(
    lines: Iterable[Mapping[str, Any]], namespace: str, labels: Mapping[str, str]
) -> tuple[Spread, ...]:
    """Return ``spec.topologySpreadConstraints`` of a pod with *labels*; raise BadInputError."""
    raw = list(lines)
    found = _read("spec.topologySpreadConstraints", raw, list[_Spread]) if raw else []
    return tuple(_spread(line, namespace, labels) for line in found)


def _spread(line: _Spread, namespace: str, labels: Mapping[str, str]) -> Spread:
    own = tuple(
        Expression(key, "In", (labels[key],))
        for key in line.match_label_keys or ()
        if key in labels
    )
    selector = _selector(line.label_selector)
    if own and selector is not None:
        selector = (*selector, *own)
    return Spread(
        PodTerm(line.topology_key, selector, (namespace,)),
        line.max_skew,
        line.when_unsatisfiable == "DoNotSchedule",
        line.min_domains or 1,
        line.node_affinity_policy == "Honor",
        line.node_taints_policy == "Honor",
    )


def _expressions(lines: Iterable[_Expression] | None) -> tuple[Expression, ...]:
    return tuple(Expression(e.key, e.operator, tuple(e.values or ())) for e in lines or ())


def _node_term(term: _NodeTerm) -> NodeTerm:
    return NodeTerm(_expressions(term.match_expressions), _expressions(term.match_fields))


def _weighted(
    lines: Iterable[_WeightedPodTerm] | None, namespace: str, sign: int
) -> Iterable[tuple[int, PodTerm]]:
    for line in lines or ():
        yield sign * line.weight, _pod_term(line.pod_affinity_term, namespace)


def _selector(selector: _LabelSelector | None) -> tuple[Expression, ...] | None:
    if selector is None:
        return None
    equal = sorted((selector.match_labels or {}).items())
    return (
        *(Expression(key, "In", (value,)) for key, value in equal),
        *_expressions(selector.match_expressions),
    )


def _pod_term(term: _PodTerm, namespace: str) -> PodTerm:
    named = tuple(sorted(term.namespaces or ()))
    everywhere = term.namespace_selector is not None
    namespaces = () if everywhere and not named else (named or (namespace,))
    return PodTerm(term.topology_key, _selector(term.label_selector), namespaces)
