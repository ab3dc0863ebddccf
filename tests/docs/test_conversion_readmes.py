# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Every command and snippet of conversion/README.md and model_cards/README.md runs and keeps its promises."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_script
from hub_server import HubServer, use_hub
from huggingface_hub import ModelCard

from eupe_hf import VARIANTS, EupeForSegmentation, EupeModel, variant_config
from eupe_hf.conversion.layouts import from_eupe


def blocks(file: str, language: str) -> list[str]:
    """Fenced code blocks of a language, in order."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_commands(file: str, folder: Path) -> str:
    """Run the lines of a file's shell blocks in this process, and return what they print."""
    printed = []
    for line in "".join(blocks(file, "bash")).strip().splitlines():
        program, *arguments = shlex.split(line)
        script = "eupe_hf.cli" if program == "eupe" else folder / arguments.pop(0)
        result = run_script(script, *arguments, folder=folder, offline=False)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        printed.append(result.stdout)
    return "".join(printed)


def run_snippets(file: str) -> dict[str, Any]:
    """Run the Python blocks of a file one after the other, and return the variables they leave."""
    names: dict[str, Any] = {}
    for snippet in blocks(file, "python"):
        exec(compile(snippet, file, "exec"), names)
    return names


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like a clone, with a downloaded encoder and a head for it, and a Hub that has the encoder."""
    torch.manual_seed(0)
    for name in ("conversion", "model_cards"):
        (tmp_path / name).symlink_to(ROOT / name)
    model = EupeModel(variant_config("eupe-s"))
    file = tmp_path / VARIANTS["eupe-s"].raw_file
    torch.save(from_eupe(model.state_dict(), model.config, "raw"), file)
    parts = ("weight", "bias", "running_mean", "running_var")
    head = {f"batchnorm_layer.{part}": torch.rand(384) + 0.5 for part in parts}
    head |= {"conv.weight": torch.randn(150, 384, 1, 1), "conv.bias": torch.randn(150)}
    head |= {"batchnorm_layer.num_batches_tracked": torch.tensor(7)}
    torch.save(
        {"model": {f"segmentation_model.1.{key}": tensor for key, tensor in head.items()}}, tmp_path / "head.pt"
    )
    monkeypatch.chdir(tmp_path)
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo(VARIANTS["eupe-s"].repo_id, {file.name: file.read_bytes()})
        yield tmp_path


def test_conversion_readme_runs(workplace: Path) -> None:
    names = run_snippets("conversion/README.md")
    assert names["done"].is_equal and {row.max_abs_error for row in names["done"].rows} == {0.0}
    assert torch.equal(names["encoder"].norm.weight, names["done"].source.state["norm.weight"])
    assert names["back"].layout == "raw" and names["ade20k"].output == Path("my-ade20k")
    printed = run_commands("conversion/README.md", workplace)
    assert "60 of 60 arrays are the same within 0.0001" in printed and "Nothing was sent" in printed
    original = torch.load("EUPE-ViT-S.pt", weights_only=True)
    for name in ("back.pt", "encoder.pt"):
        back = torch.load(name, weights_only=True)
        assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in original)
    heads = [torch.load(name, weights_only=True)["model"] for name in ("head.pt", "head-again.pt")]
    assert heads[0].keys() == heads[1].keys() and all(torch.equal(heads[1][key], heads[0][key]) for key in heads[0])
    assert EupeForSegmentation.from_pretrained("my-ade20k").config.num_labels == 150


def test_model_cards_readme_runs(workplace: Path) -> None:
    run_snippets("model_cards/README.md")
    run_commands("model_cards/README.md", workplace)
    assert "Mean IoU 0.61 on 500 held-out photographs." in ModelCard.load("my-rooms/README.md").text


@pytest.mark.parametrize("file", ["conversion/README.md", "model_cards/README.md", "CONTRIBUTING.md"])
def test_links_of_the_file_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall("^#+ (.*)$", text, re.M)
    }
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        assert not target or ((ROOT / file).parent / target).exists(), target
        assert target or anchor in anchors, anchor
