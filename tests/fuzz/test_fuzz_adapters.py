# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed adapters end in the answers of the adapter as it was trained, or in one sentence; no code runs."""

from collections.abc import Callable
from typing import Any

from adapter_cases import CASES, KNOWN, check
from campaign import FORMS, Campaign


@FORMS
def test_changed_adapters_are_right_or_refused(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("adapters", check, CASES, KNOWN)
