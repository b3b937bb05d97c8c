"""Admission of the ``grove.io`` kinds: defaulting and validation as one hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spinney.api import codec
from spinney.api.admission import AdmissionRequest, FieldError, Verdict
from spinney.api.grove import ClusterTopologyBinding, PodCliqueSet
from spinney.api.grove_defaulting import default_pod_clique_set
from spinney.api.grove_validation import (
    Domains,
    same_constraints,
    validate_pod_clique_set,
    validate_topology_binding,
    validate_update,
)

if TYPE_CHECKING:
    from spinney.api.resource import Unstructured

_SET = PodCliqueSet.RESOURCE.name
_BINDING = ClusterTopologyBinding.RESOURCE.name


class GroveAdmission:
    """An `spinney.api.admission.AdmissionHook` for PodCliqueSets and ClusterTopologyBindings."""

    resources = frozenset({_SET, _BINDING})

    def default(self, request: AdmissionRequest) -> Unstructured:
        """Return the object with defaults filled in."""
        if request.resource.name == _SET and not request.subresource:
            return default_pod_clique_set(request.obj, request.old)
        return request.obj

    def validate(self, request: AdmissionRequest) -> Verdict:
        """Return every rule broken; status writes and deletions are never refused."""
        if request.operation == "DELETE" or request.subresource:
            return Verdict()
        try:
            if request.resource.name == _BINDING:
                binding = codec.from_dict(ClusterTopologyBinding, request.obj)
                return Verdict(tuple(validate_topology_binding(binding)))
            return Verdict(tuple(_validate_set(request)))
        except codec.DecodeError as error:
            return Verdict((FieldError("spec", "FieldValueInvalid", str(error)),))


def _validate_set(request: AdmissionRequest) -> list[FieldError]:
    new = codec.from_dict(PodCliqueSet, request.obj)
    old = codec.from_dict(PodCliqueSet, request.old) if request.old is not None else None
    known = old is not None and same_constraints(old, new)
    errors = validate_pod_clique_set(
        new,
        domains_of=None if known else lambda name: _domains(request, name),
        is_new=request.operation == "CREATE",
    )
    return errors if errors or old is None else validate_update(old, new)


def _domains(request: AdmissionRequest, name: str) -> Domains | None:
    found = request.lookup(ClusterTopologyBinding.RESOURCE, "", name)
    if found is None:
        return None
    try:
        binding = codec.from_dict(ClusterTopologyBinding, found)
    except (codec.DecodeError, msgspec.ValidationError):
        return None
    return {level.domain: i for i, level in enumerate(binding.spec.levels)}
