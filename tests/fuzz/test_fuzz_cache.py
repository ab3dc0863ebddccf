# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""A cache whose files were changed gives the weights that were published, or one sentence."""

from collections.abc import Callable
from typing import Any

from campaign import FORMS, Campaign
from machine_cases import CACHES, KNOWN_CACHES, check, prepare


@FORMS
def test_changed_cache_is_right_or_refused(is_long: bool, record_property: Callable[[str, Any], None]) -> None:
    Campaign(is_long, record_property)("cache", check, CACHES, KNOWN_CACHES, examples=12, prepare=prepare)
