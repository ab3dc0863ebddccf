# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The table of private names: each is there in the installed libraries, and none that the package uses is missing."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path

import pytest

import eupe_hf
from eupe_hf.hub import private_names
from eupe_hf.hub.private_names import PRIVATE_NAMES


SOURCE = Path(eupe_hf.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.stem not in ("__init__", "private_names"))
LISTED = {name for _, names, _, _ in PRIVATE_NAMES for name in names.split()}
LIBRARIES = ("transformers", "peft", "datasets", "huggingface_hub")
PRIVATE = re.compile(r"_[A-Za-z]\w*[A-Za-z]")


@pytest.mark.parametrize(
    ("owner_name", "name", "reason", "without"),
    [pytest.param(row[0], name, *row[2:], id=name) for row in PRIVATE_NAMES for name in row[1].split()],
)
def test_private_name_is_there(owner_name: str, name: str, reason: str, without: str) -> None:
    owner = pkgutil.resolve_name(owner_name)
    # an attribute; or one of instances, an argument or a key, which only the source shows
    is_there = hasattr(owner, name) or re.search(rf"\b{name}\b", inspect.getsource(owner)) is not None
    assert is_there, f"{owner_name} no longer has {name}: {reason}. Fails without it: {without}."


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def used(tree: ast.Module) -> set[str]:
    """Private names that a file reads, passes or imports, but those of torch: as attributes, arguments and strings."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and root(node) != "torch":
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("torch"):
            found |= {alias.name for alias in node.names} | set((node.module or "").split("."))
        elif isinstance(node, ast.Call) and root(node.func) in ("getattr", "hasattr", "setattr"):
            if root(node.args[0]) != "torch" and isinstance(node.args[1], ast.Constant):
                found.add(node.args[1].value)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(str(node.slice.value))
    return {name for name in found if PRIVATE.fullmatch(name)}


def defined(tree: ast.Module) -> set[str]:
    """Names that a file gives to something of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr if root(node) == "self" else "")
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def strings(tree: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_table_is_complete_and_holds_nothing_else() -> None:
    trees = {os.fspath(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    own = set().union(*map(defined, trees.values())) - LISTED
    own |= {"_asdict", "_make"}  # documented methods of named tuples
    foreign = {name: file for file, tree in trees.items() for name in used(tree) - own - LISTED}
    assert not foreign, f"not in hub/private_names.py: {foreign}"
    table = ast.parse(Path(private_names.__file__).read_text(encoding="utf-8"))
    touched = used(table).union(*(used(tree) | defined(tree) | strings(tree) for tree in trees.values()))
    assert not LISTED - touched, f"listed in hub/private_names.py, and not used: {LISTED - touched}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_overridden_names_are_in_the_table(path: Path) -> None:
    module = importlib.import_module(".".join(("eupe_hf", *path.relative_to(SOURCE).with_suffix("").parts)))
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            others = [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
            private = {name for name in vars(cls) if PRIVATE.fullmatch(name)}
            overridden = {name for name in private if any(name in vars(base) for base in others)}
            assert overridden <= LISTED, f"{cls.__name__}: not in hub/private_names.py: {overridden - LISTED}"
