"""The pods that a workload's controller would create, for workloads of other controllers than ours.

Enough to ask whether they would fit: names, labels and annotations by which they are one gang, and
what their template asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spinney.api.core import Pod
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spinney.api.resource import Unstructured

KINDS = ("Deployment", "StatefulSet", "ReplicaSet", "Job", "LeaderWorkerSet")

_HANDED_DOWN = ("kai.scheduler/", "leaderworkerset.sh/")
"""Annotations of the workload that its pods have too."""


def pods_of(document: Unstructured, namespace: str) -> Iterator[Pod]:
    """Yield the pods of a workload of one of `KINDS`; raise BadInputError for a broken template."""
    spec = document.get("spec") or {}
    metadata = document["metadata"]
    namespace = metadata.get("namespace") or namespace
    annotations = metadata.get("annotations") or {}
    inherited = {k: v for k, v in annotations.items() if k.startswith(_HANDED_DOWN)}
    if document["kind"] == "LeaderWorkerSet":
        yield from _groups(metadata["name"], namespace, spec, inherited)
        return
    labels = {}
    if document["kind"] == "Job":
        count = _count(spec, "parallelism")
        count = min(count, int(spec.get("completions") or count))
        labels = {"batch.kubernetes.io/job-name": metadata["name"]}
    else:
        count = _count(spec, "replicas")
    for at in range(count):
        name = f"{metadata['name']}-{at}"
        yield _pod(name, namespace, spec.get("template") or {}, labels, inherited)


def _groups(
    name: str, namespace: str, spec: Mapping[str, Any], inherited: Mapping[str, str]
) -> Iterator[Pod]:
    both = spec.get("leaderWorkerTemplate") or {}
    size = _count(both, "size")
    worker = both.get("workerTemplate") or {}
    for group in range(_count(spec, "replicas")):
        for at in range(size):
            labels = {
                "leaderworkerset.sh/name": name,
                "leaderworkerset.sh/group-index": str(group),
                "leaderworkerset.sh/worker-index": str(at),
            }
            annotations = {**inherited, "leaderworkerset.sh/size": str(size)}
            template = worker if at else both.get("leaderTemplate") or worker
            pod = f"{name}-{group}" + (f"-{at}" if at else "")
            yield _pod(pod, namespace, template, labels, annotations)


def _count(spec: Mapping[str, Any], field: str) -> int:
    value = spec.get(field)
    return 1 if value is None else int(value)


def _pod(
    name: str,
    namespace: str,
    template: Mapping[str, Any],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Pod:
    given = template.get("metadata") or {}
    raw = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"{namespace}/{name}",
            "labels": {**(given.get("labels") or {}), **labels},
            "annotations": {**annotations, **(given.get("annotations") or {})},
        },
        "spec": template.get("spec") or {},
    }
    try:
        return msgspec.convert(raw, Pod)
    except msgspec.ValidationError as error:
        raise BadInputError(f"the pod template of {namespace}/{name}: {error}") from error
