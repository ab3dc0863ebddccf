# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own common tests, run on this package's classes by the harness that lies beside the repository.

They need a pytest process of their own (the harness mounts transformers' `tests` package), and the sdist of the
installed transformers, which is not downloaded here: get it with `python get_sdist.py` in the folder of the harness.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import ROOT

import eupe_hf


HARNESS = ROOT.parent / "shared" / "conformance"
SUBJECT = ROOT / "tests" / "conformance" / "subject.py"
TESTS = ("test_vision.py", "test_image_processing.py", "test_vlm.py", "test_processing.py")

# How many tests must pass, with models built: a pass without one ("vacuous") is not counted. DINOv3 passes 74, 8, 41
# and 8 of the vision tests, 18 of those for image processors with ViT's; LLaVA 108 and 36 with its processor.
BASELINE = {
    "VitConformanceModelTest": 84,
    "VitConformanceBackboneTest": 8,
    "ConvnextConformanceModelTest": 56,
    "ConvnextConformanceBackboneTest": 8,
    "VitMultiTaskConformanceModelTest": 60,
    "ConvnextMultiTaskConformanceModelTest": 35,
    "EupeImageProcessorConformanceTest": 20,
    "VitLlavaConformanceVlmTest": 106,
    "ConvnextLlavaConformanceVlmTest": 105,
    "EupeLlavaProcessorConformanceTest": 36,
}
# What transformers' DINOv3 passes and these classes skip, for both families, and with which words.
_RENAMING = "No conversion found"
_RECORDING = "apture"
EXPLAINED = {
    # DINOv3 renames weights while it loads them, by an entry in a list inside transformers. Files of this package have
    # the model's own names, so there is no renaming that could be wrong; other layouts are converted beforehand, by
    # layouts.py, whose tests compare every tensor.
    "test_reverse_loading_mapping": _RENAMING,
    "test_can_load_from_already_mapped_keys": _RENAMING,
    # These look for transformers' recording hooks. Our encoders collect hidden states and attentions themselves: the
    # hooks keep them in a ContextVar, which cannot be traced when blocks are compiled one by one. What the two test is
    # tested in test_modeling_eupe.py (hidden states as a flag, index or list) and test_compile_export.py.
    "test_can_capture_specific_layers_hidden_states": _RECORDING,
    "test_capture_outputs_decorator": _RECORDING,
}
VISION = ("VitConformanceModelTest", "ConvnextConformanceModelTest")
VLM = ("VitLlavaConformanceVlmTest", "ConvnextLlavaConformanceVlmTest")
# What transformers' LLaVA passes and these classes skip.
EXPLAINED_VLM = {"test_reverse_loading_mapping": _RENAMING, "test_can_load_from_already_mapped_keys": _RENAMING}


def _sdist() -> Path:
    name = f"transformers-{transformers.__version__}"
    default = Path.home() / ".cache" / "transformers-sdist" / name
    return Path(os.environ.get("TRANSFORMERS_SDIST") or default)


def _missing() -> str | None:
    if not HARNESS.is_dir():
        return f"the harness is not there: {HARNESS}"
    if not (_sdist() / "tests" / "test_modeling_common.py").is_file():
        return f"no sdist of transformers at {_sdist()}: fetch it with get_sdist.py and set TRANSFORMERS_SDIST"
    return None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(_missing() is not None, reason=str(_missing()))]


def _run(subject: str, folder: Path) -> dict[str, Any]:
    """The harness's report: classes with their counts, and tests with outcome and reason."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--subject={subject}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TRANSFORMERS_SDIST": str(_sdist().resolve())}
    environment.pop("PYTEST_ADDOPTS", None)  # options of this run, which are not for that one
    # the package that is tested here, also where it is not installed
    paths = [str(Path(eupe_hf.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    result = subprocess.run(
        [*command, f"--conf-json={report}", *TESTS],
        cwd=HARNESS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert report.is_file(), result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, Any]:
    return _run(str(SUBJECT), tmp_path_factory.mktemp("conformance"))


def test_no_common_test_fails(report):
    failed = {name: test["reason"] for name, test in report["tests"].items() if test["outcome"] == "failed"}
    assert failed == {}
    assert report["total"]["failed"] == report["total"]["xfailed"] == 0
    assert report["total"]["passed"] >= sum(BASELINE.values())


@pytest.mark.parametrize("name", BASELINE)
def test_each_class_passes_its_baseline(report, name):
    assert report["classes"][name]["passed"] >= BASELINE[name]


@pytest.mark.parametrize("name", EXPLAINED)
def test_explained_skips_are_skipped_for_the_stated_reason(report, name):
    for test_class in VISION:
        test = report["tests"][f"test_vision.py::{test_class}::{name}"]
        assert test["outcome"] == "skipped"
        assert EXPLAINED[name] in test["reason"]


@pytest.mark.parametrize("name", EXPLAINED_VLM)
def test_explained_skips_of_the_vlm_are_skipped_for_the_stated_reason(report, name):
    for test_class in VLM:
        test = report["tests"][f"test_vlm.py::{test_class}::{name}"]
        assert test["outcome"] == "skipped"
        assert EXPLAINED_VLM[name] in test["reason"]


def test_every_other_test_that_dinov3_passes_is_passed(report, tmp_path):
    dinov3 = _run("dinov3", tmp_path)["tests"]
    ours = {name: test["outcome"] for name, test in report["tests"].items()}
    # image processors have their own names in either report
    passed = [name for name, test in dinov3.items() if test["outcome"] == "passed" and "test_vision" in name]
    assert len(passed) >= 74 + 8 + 41 + 8
    worse = {name for name in passed if ours.get(name) != "passed"}
    assert {name.rsplit("::", 1)[1] for name in worse} == set(EXPLAINED)
    llava = [name for name, test in dinov3.items() if test["outcome"] == "passed" and "LlavaConformanceVlm" in name]
    assert len(llava) >= 108
    worse = {name for name in llava if ours.get(name.replace("::Llava", "::VitLlava")) != "passed"}
    assert {name.rsplit("::", 1)[1] for name in worse} == set(EXPLAINED_VLM)
