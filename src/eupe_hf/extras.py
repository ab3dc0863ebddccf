# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Modules of the optional extras, with a message that names the extra if one is missing."""

import importlib
from typing import Any


def require(module: str) -> Any:
    """Import a module of the extra `eval`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"This needs {name}, which is not installed: pip install 'eupe-hf[eval]'.") from error
