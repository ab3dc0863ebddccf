# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The drawn scenes of the examples, for tests: their modules lie beside the scripts that use them."""

import sys

from conftest import ROOT


# Last, so that no example hides an installed package.
sys.path.append(str(ROOT / "examples"))

import drawn_scenes
import drawn_words
import learn_drawn_scenes
import probes
import save_drawn_scenes


__all__ = ["drawn_scenes", "drawn_words", "learn_drawn_scenes", "probes", "save_drawn_scenes"]
