# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets on their way to a model: sources, splits, rows, checks.

What goes here: reading and checking of data, whatever it is for. Nothing that knows a model or a task.
"""
