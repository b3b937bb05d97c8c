"""Admission of the ``grove.io`` kinds: defaulting and validation as one hook.

The hook says what it thinks of an object; it never guesses. An object of another kind than the
request names is refused with BadInputError, not read as if it were one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spinney.api import codec
from spinney.api.admission import AdmissionRequest, FieldError, Verdict
from spinney.api.grove import (
    ClusterTopologyBinding,
    PodClique,
    PodCliqueScalingGroup,
    PodCliqueSet,
)
from spinney.api.grove_backends import VOLCANO_QUEUES, backend_warnings
from spinney.api.grove_defaulting import default_pod_clique_set
from spinney.api.grove_mnnvl import mnnvl_warnings
from spinney.api.grove_policy import GrovePolicy
from spinney.api.grove_scaling import validate_scaling
from spinney.api.grove_topology import (
    Domains,
    check_constraint_shapes,
    check_topology,
    deprecated_fields,
    is_repaired,
    redundant_preferences,
)
from spinney.api.grove_updates import validate_update
from spinney.api.grove_validation import (
    late_pod_spec_fields,
    validate_pod_clique_set,
    validate_topology_binding,
)
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spinney.api.admission import Reason
    from spinney.api.resource import Unstructured

_SET = PodCliqueSet.RESOURCE.name
_BINDING = ClusterTopologyBinding.RESOURCE.name
_SCALED = frozenset({PodClique.RESOURCE.name, PodCliqueScalingGroup.RESOURCE.name})
_DECODE_PATH = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`$", re.DOTALL)


class GroveAdmission:
    """An `spinney.api.admission.AdmissionHook` for what users write, and for scaling.

    *policy* says what the installation offers; without one, everything that Spinney knows.
    """

    resources = frozenset({_SET, _BINDING, *_SCALED})

    def __init__(self, policy: GrovePolicy | None = None) -> None:
        self._policy = policy or GrovePolicy()

    def default(self, request: AdmissionRequest) -> Unstructured:
        """Return the object with defaults filled in; raise BadInputError for a wrong object."""
        self._check_is_ours(request)
        if request.resource.name == _SET and not request.subresource:
            return default_pod_clique_set(request.obj, request.old)
        return request.obj

    def validate(self, request: AdmissionRequest) -> Verdict:
        """Return every rule broken; status writes and deletions are never refused.

        Nor are updates of nothing but metadata such as finalizers, so that what was stored under
        other rules can go. Raises BadInputError for a wrong object.
        """
        self._check_is_ours(request)
        if request.operation not in ("CREATE", "UPDATE"):
            return Verdict()
        if request.resource.name in _SCALED:
            return validate_scaling(request) if request.subresource in ("", "scale") else Verdict()
        if request.subresource or (request.old and _is_same(request.old, request.obj)):
            return Verdict()
        try:
            if request.resource.name == _BINDING:
                binding = codec.from_dict(ClusterTopologyBinding, request.obj)
                return Verdict(tuple(validate_topology_binding(binding, self._policy)))
            return self._validate_set(request)
        except codec.DecodeError as error:
            return Verdict((_unreadable(error),))

    def _validate_set(self, request: AdmissionRequest) -> Verdict:
        new = codec.from_dict(PodCliqueSet, request.obj)
        old = codec.from_dict(PodCliqueSet, request.old) if request.old is not None else None
        template = new.spec.template
        # Constraints cannot change, so only new ones are compared with the topology (T13).
        topology_is_new = old is None or is_repaired(old.spec.template, template)
        errors = validate_pod_clique_set(
            new, old, self._policy, lambda name: request.lookup(VOLCANO_QUEUES, "", name)
        )
        errors += check_constraint_shapes(template, is_new=old is None)
        if topology_is_new:
            errors += check_topology(
                template,
                lambda name: _domains(request, name),
                enabled=self._policy.topology_enabled,
            )
        if old is not None and not errors:
            errors = validate_update(old, new)
        warnings = list(self._warnings(new, old))
        if topology_is_new:
            warnings += redundant_preferences(template, lambda name: _domains(request, name))
        return Verdict(tuple(errors), tuple(warnings))

    def _warnings(self, new: PodCliqueSet, old: PodCliqueSet | None) -> Iterator[str]:
        if old is not None:
            yield from deprecated_fields(new.spec.template)
            yield from late_pod_spec_fields(old, new)
        yield from mnnvl_warnings(new)
        yield from backend_warnings(new, self._policy)

    def _check_is_ours(self, request: AdmissionRequest) -> None:
        if request.resource.name not in self.resources:
            raise BadInputError(f"there are no rules for {request.resource.name}")
        wanted = "Scale" if request.subresource == "scale" else request.resource.kind
        for obj in (request.obj,) if request.old is None else (request.obj, request.old):
            kind = obj.get("kind", wanted) if isinstance(obj, dict) else type(obj).__name__
            if kind != wanted:
                raise BadInputError(
                    f"{request.operation} of {request.resource.name}: a {wanted} wanted, "
                    f"found {kind}"
                )


def _is_same(old: Unstructured, new: Unstructured) -> bool:
    """Tell whether an update leaves alone all that rules are about."""
    before, after = old.get("metadata") or {}, new.get("metadata") or {}
    told = ("labels", "annotations")
    return old.get("spec") == new.get("spec") and all(before.get(k) == after.get(k) for k in told)


def _unreadable(error: codec.DecodeError) -> FieldError:
    """Return a decoding error with the field it is about."""
    found = _DECODE_PATH.match(str(error))
    if found is None:
        return FieldError("spec", "FieldValueInvalid", str(error))
    _, _, what = found["what"].rpartition(": ")
    not_one_of = what.startswith("Invalid enum value")
    reason: Reason = "FieldValueNotSupported" if not_one_of else "FieldValueInvalid"
    return FieldError(found["path"] or "spec", reason, what)


def _domains(request: AdmissionRequest, name: str) -> Domains | None:
    found = request.lookup(ClusterTopologyBinding.RESOURCE, "", name) if name else None
    if found is None:
        return None
    try:
        binding = codec.from_dict(ClusterTopologyBinding, found)
    except codec.DecodeError:
        return None
    return {level.domain: i for i, level in enumerate(binding.spec.levels)}
