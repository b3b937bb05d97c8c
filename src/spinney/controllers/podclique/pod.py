"""The pod of a clique: the user's template with identity, environment, gate and start order.

A pod is built as JSON from the template's JSON, so that every field the user wrote is in it,
known to our types or not.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from spinney import __version__
from spinney.api import names
from spinney.api.core import Pod
from spinney.controllers import identity
from spinney.controllers.backends.backend import PodMarks
from spinney.controllers.cliques import with_environment
from spinney.controllers.resourceclaims import refs
from spinney.controllers.update.plan import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.api.grove import PodClique
    from spinney.api.resource import Unstructured

WAIT_IMAGE = f"ghcr.io/spinney-dev/spinney:{__version__}"
WAIT_CONTAINER = "grove-initc"
"""Grove's name of the container that waits for parents."""
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_VOLUME = "grove-initc-token"
_TOKEN_LIFE_S = 3600
_OF_CLIQUES = {identity.TEMPLATE_REPLICAS, refs.PER_POD, refs.SHARED, *OWN}
"""Annotations that say something to the clique's reconcilers, not of its pods."""


def build_pod(
    clique: PodClique,
    index: int,
    waits_for: Sequence[tuple[str, int]] = (),
    marks: PodMarks | None = None,
    *,
    wait_image: str = WAIT_IMAGE,
) -> Unstructured:
    """Return the pod of *index*; it has no name but a prefix, the API server completes it.

    *waits_for* has the full names of the cliques to wait for, each with how many of its pods
    have to be ready. *marks* are those of the pod's scheduler.
    """
    marks = marks or PodMarks()
    own = refs.pod_claims(clique.name, clique.metadata.annotations, index)
    spec = refs.with_claims(copy.deepcopy(clique.spec.pod_spec), map(refs.shared_reference, own))
    spec = with_environment(spec, _environment(clique))
    spec |= marks.spec
    spec["hostname"] = f"{clique.name}-{index}"
    spec["subdomain"] = _service_name(clique)
    spec["schedulerName"] = spec.get("schedulerName") or names.SPINNEY_SCHEDULER
    spec["schedulingGates"] = [{"name": names.POD_GANG_GATE}, *(spec.get("schedulingGates") or ())]
    if waits_for:
        _add_wait(spec, clique.namespace, waits_for, wait_image)
    annotations = {
        key: value for key, value in clique.metadata.annotations.items() if key not in _OF_CLIQUES
    }
    return {
        "apiVersion": Pod.RESOURCE.api_version,
        "kind": Pod.RESOURCE.kind,
        "metadata": {
            "generateName": f"{clique.name}-",
            "namespace": clique.namespace,
            "labels": {
                **clique.labels,
                **marks.labels,
                names.POD_CLIQUE: clique.name,
                names.POD_INDEX: str(index),
            },
            "annotations": {**annotations, **marks.annotations},
            "ownerReferences": [_owner(clique)],
        },
        "spec": spec,
    }


def _environment(clique: PodClique) -> list[dict[str, Any]]:
    set_name = clique.labels.get(names.PART_OF, "")
    index = f"metadata.labels['{names.POD_INDEX}']"
    service = f"{_service_name(clique)}.{clique.namespace}.svc.cluster.local"
    return [
        {"name": "GROVE_PCS_NAME", "value": set_name},
        {"name": "GROVE_PCS_INDEX", "value": clique.labels.get(names.SET_REPLICA_INDEX, "")},
        {"name": "GROVE_PCLQ_NAME", "value": clique.name},
        {"name": "GROVE_HEADLESS_SERVICE", "value": service},
        {"name": "GROVE_PCLQ_POD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _service_name(clique: PodClique) -> str:
    set_name = clique.labels.get(names.PART_OF, "")
    replica = identity.index_label(clique.labels, names.SET_REPLICA_INDEX)
    return identity.replica_name(set_name, replica or 0)


def _add_wait(
    spec: dict[str, Any], namespace: str, waits_for: Sequence[tuple[str, int]], image: str
) -> None:
    """Add the waiting container after the user's own, which may work meanwhile."""
    wait: dict[str, Any] = {
        "name": WAIT_CONTAINER,
        "image": image,
        "command": ["spinney", "startup-wait"],
        "args": [
            f"--namespace={namespace}",
            *(f"--podcliques={name}:{count}" for name, count in waits_for),
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    }
    if spec.get("automountServiceAccountToken") is False:
        wait["volumeMounts"] = [{"name": _TOKEN_VOLUME, "mountPath": _TOKEN_PATH, "readOnly": True}]
        spec["volumes"] = [*(spec.get("volumes") or ()), _token_volume()]
    spec["initContainers"] = [*(spec.get("initContainers") or ()), wait]


def _token_volume() -> dict[str, Any]:
    """Return the volume Kubernetes mounts by itself where the user has not turned it off."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    root_ca = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources: list[dict[str, Any]] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_LIFE_S}},
        {"configMap": root_ca},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": _TOKEN_VOLUME, "projected": {"sources": sources}}


def _owner(clique: PodClique) -> dict[str, Any]:
    owner = clique.owner_reference()
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
