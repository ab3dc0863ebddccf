# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs that are killed, that share an output or have no room: the next one makes the same output, bit for bit."""

from collections.abc import Callable
from typing import Any

from campaign import FORMS, Campaign
from machine_cases import CASES, KNOWN, check, prepare


@FORMS
def test_disturbed_runs_are_made_whole(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("machines", check, CASES, KNOWN, examples=12, prepare=prepare)
