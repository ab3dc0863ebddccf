# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What test files share: tiny encoders, checkpoints with known values, recorded outputs, scripts in this process."""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from transformers.utils import is_torchvision_available, logging

from eupe_hf import EupeConfig, EupeImageProcessor, EupeImageProcessorPil, EupeModel, variant_config
from eupe_hf.conversion.layouts import StateDict, expected_shapes, from_eupe
from eupe_hf.variants import VARIANTS


ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
requires_shared = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the outputs recorded from the original code do not lie beside this repository"
)

FAMILIES = ("vit", "convnext")
LAYOUTS = ("raw", "dinov3", "eupe")
NAMES = tuple(VARIANTS)
# The six models at full size: one of each family in `make test`, the others with the slow tests.
FULL_SIZE = [pytest.param(n, marks=() if n in ("eupe-t", "eupe-convnext-t") else pytest.mark.slow) for n in NAMES]

needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
PROCESSOR_CLASSES = [
    pytest.param(EupeImageProcessorPil, id="pil"),
    pytest.param(EupeImageProcessor, id="torchvision", marks=needs_torchvision),
]
# Just enough of torchvision for transformers to import; none of its functions, so that calling one fails.
_TORCHVISION = {
    "__init__.py": '__version__ = "0.28.0"\n',
    "io/__init__.py": "",
    "transforms/__init__.py": "from enum import Enum\n"
    "names = 'NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS'.split()\n"
    "InterpolationMode = Enum('InterpolationMode', {name: name.lower() for name in names})\n",
    "transforms/functional.py": "def pil_to_tensor(image): raise AssertionError\n",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": "",
}


def run_tests_of_torchvision_class(file: str, folder: Path) -> int:
    """Run the tests of a file that are parametrised with "torchvision", with a stand-in for it; how many passed."""
    for name, source in _TORCHVISION.items():
        path = folder / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    python_path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "[torchvision", file]
    environment = {**os.environ, "PYTHONPATH": python_path}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout
    return int(re.search(r"(\d+) passed", result.stdout)[1])


@dataclass(frozen=True)
class Finished:
    """What a script ended with."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: str | Path, *arguments: str | Path, folder: Path, offline: bool = True) -> Finished:
    """Run a script, or a module by its name, as its own main program in a folder, but in this process.

    The imports alone take longer than most scripts. Data sets are prepared in the folder, in `cache`, and none is
    fetched; with `offline` no model either.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        if offline:
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(sys, "argv", [Path(script).name, *map(str, arguments)])
        code: int | str | None = 0
        try:
            if isinstance(script, Path):
                patch.setattr(sys, "path", [str(script.parent), *sys.path])
                runpy.run_path(str(script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    told = f"{code}\n" if isinstance(code, str) else ""  # which Python itself prints
    return Finished(1 if told else code or 0, out.getvalue(), err.getvalue() + told)


def fill_shared_memory(monkeypatch: pytest.MonkeyPatch, tried: Path) -> None:
    """Refuse shared memory to torch, in this process and in the workers that it forks; `tried` says that one asked."""

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        tried.touch()
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    # torch's own way, in a thread whose error nobody hears: the main process would wait for ever
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)


def tiny_config(family: str, **overrides: Any) -> EupeConfig:
    """An encoder of this family that runs in milliseconds and has every kind of tensor."""
    if family == "vit":
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    else:
        fields = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
    return EupeConfig(backbone_type=family, **{**fields, **overrides})


def random_state(config: EupeConfig, layout: str = "eupe", seed: int = 0) -> StateDict:
    """A checkpoint of this architecture in which every value matters: no zeros, no ones, layer-scale of order one.

    In a raw one the key third of each qkv bias is not zero, as in the published files: its mask makes it so.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in expected_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if re.search(r"norm\d?\.weight$", key):
            values = 1 + 0.2 * values
        elif "layer_scale" in key or key.endswith("gamma"):
            values = 0.3 + 0.1 * values
        elif len(shape) > 1 and not key.endswith(("token", "tokens")):
            values *= 1.2 / values[0].numel() ** 0.5
        else:
            values *= 0.2
        state[key] = values
    converted = from_eupe(state, config, layout)
    for key, tensor in converted.items():
        if key.endswith("qkv.bias"):
            tensor[key_third(tensor)] = 0.5
    return converted


def key_third(qkv_bias: torch.Tensor) -> slice:
    """Where in a fused qkv bias the keys stand."""
    width = len(qkv_bias) // 3
    return slice(width, 2 * width)


def published_state(name: str) -> StateDict:
    """A raw checkpoint of one of the six: that of which the outputs are recorded, else one of random values."""
    if GOLDEN.is_dir():
        return raw_weights().state_dict(VARIANTS[name].torch_hub_name)
    return random_state(variant_config(name), "raw")


def raw_weights() -> ModuleType:
    """The module that makes the checkpoints of which the outputs are recorded; it is no part of this repository."""
    spec = importlib.util.spec_from_file_location("raw_weights", GOLDEN / "raw_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_path(name: str) -> Path:
    """The recorded outputs of one of the six."""
    return GOLDEN / f"{VARIANTS[name].torch_hub_name}.safetensors"


def build_model(state: StateDict, config: EupeConfig) -> EupeModel:
    """The encoder on these tensors, not on copies of them."""
    with torch.device("meta"):
        model = EupeModel(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def assert_same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and every bit of two state dicts."""
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def assert_raw_came_back(found: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    """As `assert_same_bits`, but for the key third of each qkv bias, which comes back as zeros."""
    expected = dict(source)
    for key in source:
        if key.endswith("qkv.bias"):
            expected[key] = source[key].clone()
            expected[key][key_third(source[key])] = 0
    assert_same_bits(found, expected)


# ---- what holds for every test ----


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of the fuzz campaign."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "fuzz"]
    if rows:
        terminalreporter.section("fuzz campaign")
        names = list(rows[0])
        for row in [dict(zip(names, names, strict=True)), *rows]:
            terminalreporter.line(
                "".join(f"{row[name]!s:<14}" if name == "kind" else f"{row[name]:>10}" for name in names)
            )
