# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The tasks of the recipes, a file each.

What goes here: options, defaults, loading, rows, metrics of one task.
"""
