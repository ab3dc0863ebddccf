# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed pictures end in the pixels that Pillow gives, upright, or in one sentence."""

from collections.abc import Callable
from typing import Any

from campaign import FORMS, Campaign
from picture_cases import CASES, KNOWN, check


@FORMS
def test_changed_pictures_are_right_or_refused(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("pictures", check, CASES, KNOWN, examples=60)
