# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in the three layouts: reading, converting with proof, comparing.

Code that knows how other layouts name their tensors belongs here.
"""

from .convert import (
    Conversion,
    ConversionError,
    OptionError,
    check_head_options,
    convert_checkpoint,
    convert_head,
    convert_to_layout,
    summary,
    verify,
)
