# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""JSON values of any kind, and one change somewhere in a JSON value."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st


DEEP = b"[" * 100_000  # JSON as deep as no parser goes; cases call it by its name
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
    | st.sampled_from([0, -1, 1, 2, 100_000, 10_000_000, 2**31, 2**63, 1e308, "", "a", "../x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a JSON value but itself."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from _places(value, (*path, key))


def changed(content: Any, case: Any) -> tuple[Any, tuple]:
    """A copy of a JSON value with the change, and where it is."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    path = places[min(int(case.where * len(places)), len(places) - 1)] if places else ()
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if not path:
        return case.value, path
    if case.do == "delete":
        del parent[path[-1]]
    elif case.do == "twice" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))
    elif case.do == "add" and isinstance(parent[path[-1]], dict):
        parent[path[-1]]["more"] = case.value
    elif case.do == "add" and isinstance(parent[path[-1]], list):
        parent[path[-1]].append(case.value)
    else:
        parent[path[-1]] = case.value
    return content, path
