"""The store against a model: a dict and what its indexes must say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spinney.api.core import ConfigMap
from spinney.api.meta import ObjectMeta
from spinney.kube.store import Store

# "a0" and "a-b" are the namespaces that a careless prefix search mixes up with "a".
_NAMESPACES = st.sampled_from(["", "a", "a-b", "a0", "b"])
_VALUES = st.lists(st.sampled_from("xyz"), max_size=3)
_STEPS = st.lists(st.tuples(_NAMESPACES, st.sampled_from("mn"), st.none() | _VALUES), max_size=30)


def values_of(obj: ConfigMap) -> list[str]:
    return list(obj.data.get("values", ""))


@given(steps=_STEPS, indexed_after=st.integers(0, 30))
def test_lists_and_indexes_say_what_is_stored(
    steps: list[tuple[str, str, list[str] | None]], indexed_after: int
) -> None:
    store: Store[ConfigMap] = Store()
    model: dict[str, ConfigMap] = {}
    for number, (namespace, name, values) in enumerate([*steps, ("b", "m", ["x"])]):
        if number == min(indexed_after, len(steps)):
            store.add_index("values", values_of)
        meta = ObjectMeta(name=name, namespace=namespace)
        obj = ConfigMap(metadata=meta, data={"values": "".join(values or ())})
        if values is None:
            assert store.remove(obj.key) is model.pop(obj.key, None)
        else:
            store.put(obj.key, obj)
            model[obj.key] = obj
    assert store.list() == [model[key] for key in sorted(model)]
    assert len(store) == len(model)
    for namespace in ("a", "a-b", "a0", "b", "none"):
        want = [model[key] for key in sorted(model) if model[key].namespace == namespace]
        assert store.list(namespace) == want
    for value in "xyz":
        want = [model[key] for key in sorted(model) if value in values_of(model[key])]
        assert store.by_index("values", value) == want
