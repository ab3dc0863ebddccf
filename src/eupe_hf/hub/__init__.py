# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Short names, download, and the registration with transformers.

Code that talks to the Hub or changes what transformers does belongs here. Nothing here computes.
"""

from .fetch import fetch
from .registry import register
from .short_names import install_short_names, remove_short_names
