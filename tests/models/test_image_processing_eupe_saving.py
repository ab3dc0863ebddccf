# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processors in folders and on the Hub, and without this package."""

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESSOR_CLASSES, run_tests_of_torchvision_class
from hub_server import TOKEN, HubServer, use_hub
from image_common import RGB, values
from published import code_files
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from eupe_hf.models import image_processing_eupe
from eupe_hf.models.image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil


AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_eupe.EupeImageProcessor",
        "pil": "image_processing_eupe.EupeImageProcessorPil",
    }
}


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


def saved(folder: Path, name: str = "preprocessor_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_saved_files_carry_the_options_and_the_code(processor_class: type, tmp_path: Path) -> None:
    options = {"size": {"shortest_edge": 32}, "resample": 3, "size_divisor": 16, "do_pad": True, "image_mean": [0.5]}
    files = processor_class(**options).save_pretrained(tmp_path / "first")
    names = [Path(file).name for file in files]
    assert names[:2] == ["preprocessor_config.json", "image_processing_eupe.py"]
    assert set(names[1:]) == code_files("image_processing_eupe") and len(set(names)) == len(names)
    config = saved(tmp_path / "first")
    assert config["image_processor_type"] == "EupeImageProcessor"
    assert config["auto_map"] == AUTO_MAP
    assert {key: config[key] for key in options} == options
    assert Path(files[1]).read_bytes() == Path(image_processing_eupe.__file__).read_bytes()

    loaded = processor_class.from_pretrained(tmp_path / "first", do_normalize=False)
    loaded.save_pretrained(tmp_path / "second")
    assert saved(tmp_path / "second") == {**config, "do_normalize": False}
    assert (tmp_path / "second" / "image_processing_eupe.py").is_file()
    assert torch.equal(values(loaded, RGB), values(processor_class(**options, do_normalize=False), RGB))
    assert EupeImageProcessorPil.from_pretrained(tmp_path / "second").to_dict() == loaded.to_dict()


def test_instances_do_not_share_their_options(processor_class: type) -> None:
    first, second = processor_class(), processor_class()
    first.size["height"] = 8
    first.to_dict()["auto_map"]["AutoImageProcessor"]["pil"] = "other.Class"
    assert second.size == {"height": 256, "width": 256}
    assert first.to_dict()["auto_map"] == AUTO_MAP
    assert copy.deepcopy(second).to_dict() == second.to_dict()


class TinyProcessor(ProcessorMixin):
    """A processor of an image processor alone."""

    def __init__(self, image_processor: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, **kwargs)


def test_processor_config_carries_the_auto_map(processor: Any, tmp_path: Path) -> None:
    TinyProcessor(processor).save_pretrained(tmp_path)
    nested = saved(tmp_path, "processor_config.json")["image_processor"]
    assert nested == saved_dict(processor)
    assert nested["auto_map"] == AUTO_MAP
    assert type(processor).from_pretrained(tmp_path).to_dict() == processor.to_dict()


def saved_dict(processor: Any) -> dict[str, Any]:
    return json.loads(processor.to_json_string())


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_without_torchvision_the_twin_is_made(tmp_path: Path) -> None:
    processor = EupeImageProcessor(size=32, resample=3)
    assert type(processor) is EupeImageProcessorPil
    assert processor.to_dict() == EupeImageProcessorPil(size=32, resample=3).to_dict()
    processor.save_pretrained(tmp_path)
    assert type(EupeImageProcessor.from_pretrained(tmp_path)) is EupeImageProcessorPil
    assert type(EupeImageProcessor.from_dict(processor.to_dict())) is EupeImageProcessorPil


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_push_uploads_the_config_and_the_code(tmp_path: Path, how: str) -> None:
    processor = EupeImageProcessorPil(size=32)
    processor.save_pretrained(tmp_path / "eupe")  # the second upload must not take the first's files for known ones
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        if how == "push_to_hub":
            processor.push_to_hub("tester/eupe")
        else:
            processor.save_pretrained(tmp_path / "eupe", push_to_hub=True, repo_id="tester/eupe")
        files = server.files("tester/eupe")
        assert json.loads(files["preprocessor_config.json"]) == saved_dict(processor)
        assert files["image_processing_eupe.py"] == Path(image_processing_eupe.__file__).read_bytes()


REMOTE = """
    import sys

    sys.modules["eupe_hf"] = None  # importing the package fails
    import numpy as np
    from transformers import AutoImageProcessor

    folder, again, class_name = sys.argv[1:]
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__name__ == class_name, type(processor)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    np.save("values.npy", processor(np.load("image.npy"), return_tensors="np")["pixel_values"])
    processor.save_pretrained(again)
"""


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_remote_code_loads_without_the_package(tmp_path: Path, nested: bool) -> None:
    processor = EupeImageProcessorPil(size={"shortest_edge": 32}, resample=3)
    processor.save_pretrained(tmp_path / "eupe")
    if nested:
        TinyProcessor(processor).save_pretrained(tmp_path / "eupe")
        (tmp_path / "eupe" / "preprocessor_config.json").unlink()
    np.save(tmp_path / "image.npy", RGB)
    class_name = "EupeImageProcessor" if is_torchvision_available() else "EupeImageProcessorPil"
    command = [sys.executable, "-c", textwrap.dedent(REMOTE), tmp_path / "eupe", tmp_path / "again", class_name]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "values.npy")[0], values(processor, RGB).numpy())
    assert saved(tmp_path / "again") == saved_dict(processor)
    source = (tmp_path / "again" / "image_processing_eupe.py").read_bytes()
    assert source == Path(image_processing_eupe.__file__).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) >= 3
