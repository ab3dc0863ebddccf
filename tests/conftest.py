# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What holds for every test."""

from collections.abc import Iterator

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _as_loud_as_before() -> Iterator[None]:
    """Scripts and the command line, run in this process, silence transformers: not for the tests after them."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if shows_progress else logging.disable_progress_bar)()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: with several processes it would else be the last to end, and the others wait."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
