# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets on their way to a model: sources, splits, rows, boxes, checks.

Code that reads and checks data belongs here, whatever the data is for. Models and tasks are unknown here.
"""
