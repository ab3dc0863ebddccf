# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in the three layouts: reading, converting, comparing.

What goes here: whatever knows names of tensors in other layouts than this package's.
"""

from .convert import (
    Conversion,
    OptionError,
    check_head_options,
    convert,
    convert_back,
    convert_checkpoint,
    convert_head,
    summary,
    verify,
)


__all__ = [
    "Conversion",
    "OptionError",
    "check_head_options",
    "convert",
    "convert_back",
    "convert_checkpoint",
    "convert_head",
    "summary",
    "verify",
]
