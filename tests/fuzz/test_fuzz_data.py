# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed data of the recipes end in the same rows, without those that cannot be read, or in one sentence."""

from collections.abc import Callable
from typing import Any

from campaign import FORMS, Campaign
from data_cases import CASES, KNOWN, check, prepare


@FORMS
def test_changed_data_is_right_or_refused(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("data", check, CASES, KNOWN, prepare=prepare)
