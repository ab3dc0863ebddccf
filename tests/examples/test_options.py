# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of all scripts: both spellings of two words, one vocabulary, `--device` wherever a model runs."""

import argparse
import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT


SCRIPTS = sorted(
    path
    for pattern in ("examples/*.py", "examples/demo_app/*.py", "conversion/*.py", "model_cards/*.py")
    for path in ROOT.glob(pattern)
    if {"parse_args(", "__main__"} <= set(re.findall(r"parse_args\(|__main__", path.read_text(encoding="utf-8")))
)
MODEL_RUNNERS = [
    "demo_app/app", "evaluate", "features_datasets", "features_ray", "linear_probe", "multitask_inference", "predict",
    "visualize_features",
]  # fmt: skip


class ParserFoundError(Exception):
    """Carries the parser of a script out of it."""


def parser_of(script: Path) -> argparse.ArgumentParser:
    """The parser of a script, which is stopped where it would read its command line."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise ParserFoundError(parser)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, stop)
        patch.setattr(sys, "argv", [script.name])
        patch.syspath_prepend(str(script.parent))
        try:
            with pytest.raises(ParserFoundError) as caught:
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as missing:  # an engine that is not installed
            pytest.skip(str(missing))
    return caught.value.args[0]


def values_for(action: argparse.Action) -> list[str]:
    """Words that an option takes."""
    count = action.nargs if isinstance(action.nargs, int) else 1
    return [str(next(iter(action.choices))) if action.choices else "7"] * count


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_of_two_words_have_both_spellings(script: Path) -> None:
    parser = parser_of(script)
    options = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    for group in parser._mutually_exclusive_groups:
        group.required = False
    for action in parser._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"
    for action in options:
        default = parser.parse_args([])
        for written in (f"--{action.dest.replace('_', '-')}", f"--{action.dest}"):
            parsed = parser.parse_args([written, *values_for(action)])
            changed = {name for name, value in vars(parsed).items() if value != getattr(default, name)}
            assert changed == {action.dest} or (action.choices and not changed), f"{script.name} {written}"


@pytest.mark.parametrize("name", MODEL_RUNNERS)
def test_what_runs_a_model_takes_a_device(name: str) -> None:
    script = ROOT / "examples" / f"{name}.py"
    parser = parser_of(script)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {"--device", "--model"} <= flags and parser.get_default("device") is None
    used = {node.attr for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Attribute)}
    assert "device" in used
