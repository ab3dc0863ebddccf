# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of preprocessing: a small run from end to end."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import preprocessing

from eupe_hf import EupeImageProcessorPil


def test_photographs_are_always_the_same_and_differ_from_each_other() -> None:
    first, again = (preprocessing.photographs(5, 48) for _ in range(2))
    assert [image.size for image in first] == [(48, 48)] * 5
    assert all(np.array_equal(image, other) for image, other in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 5


def test_a_small_run_prints_a_row_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    EupeImageProcessorPil().save_pretrained(tmp_path)
    command = ["preprocessing.py", "--count", "3", "--size", "40", "--rounds", "2", "--against", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    preprocessing.main()
    printed = capsys.readouterr().out
    assert printed.startswith("3 photographs of 40 pixels, 2 rounds, torch ")
    rows = re.findall(r"^\| ([a-z ]+) \| [\d.]+ \| [\d.]+ \([\d.]+ to [\d.]+\) \|$", printed, flags=re.MULTILINE)
    assert rows == ["default", "resized together", "one call each", "read before", "other version"]
