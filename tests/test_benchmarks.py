# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of LoRA's quality: its data and a quick run from end to end; commands of the benchmarks' guide."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks import lora_quality, pretraining
from conftest import ROOT


COMMANDS = re.findall(
    r"^python (tests/benchmarks/.*)$", (ROOT / "tests/benchmarks/README.md").read_text(), re.MULTILINE
)
# What makes each command short; later options win.
QUICK = {
    "detection": "--steps 2",
    "features": "--models eupe-t --images 40 --rounds 1",
    "forward": "--models eupe-t --shapes 1x64 --seconds 0.2",
    "loading": "--model eupe-t --rounds 1",
    "lora": "--models eupe-t --batch 1 --size 64 --rounds 1 --skip-memory",
    "lora_quality": "--quick --families vit --data digits",
    "preprocessing": "--rounds 1",
    "multitask": "--models eupe-t --size 64 --rounds 1",
    "vlm": "--models eupe-t --size 64 --rounds 1",
}


@pytest.mark.parametrize(("name", "sizes"), [("digits", (1200, 597)), ("patches", (1200, 576))])
def test_data_is_split_without_overlap(name: str, sizes: tuple[int, int]) -> None:
    parts = lora_quality.DATA[name]()
    assert tuple(map(len, parts)) == sizes
    seen, held_out = ({row["pixel_values"].numpy().tobytes() for row in part} for part in parts)
    assert not seen & held_out
    classes = [torch.tensor([row["labels"] for row in part]).bincount() for part in parts]
    assert len(classes[0]) == len(classes[1]) and all(counts.min() > 0.8 * counts.max() for counts in classes)


@pytest.mark.parametrize(
    ("draw", "num_classes"),
    [
        (pretraining.draw_patterns, 32),
        (pretraining.draw_letters, 42),
        (pretraining.draw_crops, 12),
        (pretraining.draw_mixture, 86),
    ],
)
def test_drawn_images_of_a_seed_are_always_the_same(draw: Callable, num_classes: int) -> None:
    images, classes = draw(400, seed=1)
    again, _ = draw(400, seed=1)
    other, _ = draw(400, seed=2)
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert images.shape == (400, 3, 64, 64) and images.isfinite().all() and 0.5 < images.std() < 2
    assert set(classes.tolist()) <= set(range(num_classes)) and len(set(classes.tolist())) > 0.8 * num_classes


def test_pretraining_has_no_digits_and_no_photograph_of_the_evaluation() -> None:
    assert pretraining.LETTERS.isalpha() and len(set(pretraining.LETTERS)) == len(pretraining.LETTERS)
    assert not set(pretraining.PHOTOGRAPHS) & set(lora_quality.PHOTOGRAPHS)


@pytest.mark.slow
def test_quick_run_prints_a_row_per_setting_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lora_quality.py", "--quick", "--cache", str(tmp_path), "--families", "vit", "--data", "digits"]
    monkeypatch.setattr(sys, "argv", command)
    lora_quality.main()
    tables = [capsys.readouterr().out]
    monkeypatch.setattr(lora_quality, "finetune", None)
    monkeypatch.setattr(lora_quality, "pretrain", None)
    lora_quality.main()
    tables.append(capsys.readouterr().out)
    first, second = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
        for table in tables
    )
    assert [row[0] for row in first] == ["vit", *(setting.name for setting in lora_quality.settings("vit"))]
    trained = {row[0]: int(row[1].replace(",", "")) for row in first[1:]}
    assert trained["probe"] == 64 * 10 + 10  # the classifier
    assert trained["LoRA attention 16"] == trained["probe"] + 4 * 4 * 16 * (
        64 + 64
    )  # of four blocks, four layers each
    assert first[2][5] == "+0.0 ± 0.0"  # full fine-tuning against itself
    timings = 3
    assert [row[:timings] + row[timings + 1 :] for row in first] == [
        row[:timings] + row[timings + 1 :] for row in second
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_guide_run(command: str, tmp_path: Path) -> None:
    script, *options = shlex.split(command)
    words = [sys.executable, str(ROOT / script), *options, *shlex.split(QUICK[Path(script).stem])]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d\.\d", result.stdout)
