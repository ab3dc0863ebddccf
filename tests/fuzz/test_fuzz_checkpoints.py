# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed checkpoints end in the true tensors or in one sentence; the old output stays, and no code runs."""

from collections.abc import Callable
from typing import Any

from campaign import FORMS, Campaign
from checkpoint_cases import CASES, KNOWN, check
from checkpoint_changes import shrink


@FORMS
def test_changed_checkpoints_are_right_or_refused(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("checkpoints", check, CASES, KNOWN, prepare=shrink)
