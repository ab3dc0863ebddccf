# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The options of the `eupe` command: both spellings of two words, and `--device` wherever a model runs."""

from pathlib import Path

import pytest
from test_cli import COMMANDS, PHOTOS, eupe, refusal
from test_cli import models as models
from typer.main import get_command

from eupe_hf import cli


def test_options_of_two_words_are_understood_in_both_spellings() -> None:
    eupe_command = get_command(cli.app)
    found = set()
    for name, command in eupe_command.commands.items():
        parent = eupe_command.make_context("eupe", [name], resilient_parsing=True)
        for option in command.params:
            for spelling in [flag for flag in (*option.opts, *option.secondary_opts) if "-" in flag.strip("-")]:
                is_on = spelling not in option.secondary_opts
                for written in (spelling, f"--{spelling[2:].replace('-', '_')}"):
                    arguments = [written] if option.is_flag else [written, "7"]
                    context = command.make_context(name, arguments, parent=parent, resilient_parsing=True)
                    assert context.params[option.name] == (is_on if option.is_flag else 7), (name, written)
                found.add(spelling)
    assert found == {"--batch-size", "--keep-projectors", "--no-force", "--no-overwrite", "--no-strict"}


def test_what_runs_a_model_takes_a_device(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    photo, encoder, index = PHOTOS / "coffee.jpg", models / "encoder", tmp_path / "a.parquet"
    commands = {
        "verify": [models / "convnext", "--against", models / "convnext"],
        "features": [photo, "--output", index, "--model", encoder, "--workers", 0],
        "search": [photo, "--index", index],
        "predict": [models / "parts", photo, "--json"],
        "visualize": [photo, "--model", encoder, "--size", 64, "--output", tmp_path, "--overwrite"],
    }
    takers = {name for name in COMMANDS if "--device" in " ".join(eupe(name, "--help"))}
    assert takers == set(commands)
    for name, arguments in commands.items():
        assert eupe(name, *arguments, "--device", "cpu")
        told = refusal(capsys, monkeypatch, name, *arguments, "--device", "abacus")
        assert told.startswith("eupe: The device 'abacus' is not available on this machine: choose cpu"), name
