"""Labels, annotations, gates and environment variables that several parts agree on."""

from __future__ import annotations

MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "app.kubernetes.io/part-of"
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
OPERATOR = "grove-operator"
"""The value of `MANAGED_BY` on everything the controllers make; Grove's, so its tools work."""

POD_CLIQUE = "grove.io/podclique"
POD_GANG = "grove.io/podgang"
BASE_POD_GANG = "grove.io/base-podgang"
SET_REPLICA_INDEX = "grove.io/podcliqueset-replica-index"
SCALING_GROUP = "grove.io/podcliquescalinggroup"
SCALING_GROUP_REPLICA_INDEX = "grove.io/podcliquescalinggroup-replica-index"
POD_INDEX = "grove.io/podclique-pod-index"
POD_TEMPLATE_HASH = "grove.io/pod-template-hash"
SCHEDULER_NAME = "grove.io/scheduler-name"
TOPOLOGY_NAME = "grove.io/topology-name"

POD_GANG_GATE = "grove.io/podgang-pending-creation"
"""The scheduling gate that opens when the gang lists all its pods."""

SPINNEY_SCHEDULER = "spinney-scheduler"
"""``spec.schedulerName`` of the pods our scheduler places."""

ROLE = "spinney.dev/role"
"""Pod label: ``prefill``, ``decode``, ``both`` (serves whole requests) or ``router``."""
MODEL = "spinney.dev/model"
"""Pod label: the model name the worker serves."""
REVISION = "spinney.dev/revision"
"""Pod label: the revisions of the set that the pod is of, joined by dots. Prefill and decode pods
may work together if they have one in common."""
HTTP_PORT = "http"
"""The name of the container port on which a worker or router serves HTTP."""
DEFAULT_NAMESPACE = "default"

GPU_RESERVATION = "spinney.dev/gpu-reservation"
"""Label of a pod that holds a GPU which others share: the name of the GPU on its node."""
GPU_RESERVATION_OWNER = "spinney.dev/gpu-reservation-of"
"""Label of such a pod: the scheduler that keeps it."""
RESERVED_DEVICE = "spinney.dev/gpu-device"
"""Annotation that such a pod gives itself: the device it was given, as a container names it."""
