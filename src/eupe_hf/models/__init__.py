# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The models: files that travel to the Hub and run there without this package, flat side by side.

Configurations, models and processors belong here. They import each other as `from .name import X`, and nothing else of
the package.
"""
