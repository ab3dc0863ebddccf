# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What is saved and pushed can be loaded again: by this package, and by a process that does not have it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, UPLOAD_STEPS, HubServer, hub_environment, use_hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from published import CODE_FILES, SAVED_FILES
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel

import eupe_hf
from eupe_hf import EupeBackbone, EupeConfig, EupeImageProcessorPil, EupeModel
from eupe_hf.models.modeling_eupe_cards import model_card


CONFIGS = {
    "vit": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "out_indices": [0, 2]},
    "convnext": {"depths": [1, 2, 1], "hidden_sizes": [8, 16, 24], "out_indices": [1, 3]},
}
LICENSE = {
    "license": "other",
    "license_name": "fair-noncommercial-research-license",
    "license_link": "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
}


def tiny(family: str, cls: type = EupeModel, seed: int = 0) -> EupeModel | EupeBackbone:
    """A small model with values that matter everywhere, layer scales included."""
    torch.manual_seed(seed)
    model = cls(EupeConfig(backbone_type=family, image_size=64, **CONFIGS[family])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def outputs(model: EupeModel | EupeBackbone) -> dict[str, torch.Tensor]:
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = model(pixel_values)
    if isinstance(model, EupeBackbone):
        return {f"map{i}": feature_map for i, feature_map in enumerate(given.feature_maps)}
    return {"tokens": given.last_hidden_state, "pooled": given.pooler_output}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A stand-in Hub to which this process is logged in."""
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the client's waits between retries instead of sitting them out."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


# ---- what is written ----


@pytest.mark.parametrize("cls", [EupeModel, EupeBackbone])
@pytest.mark.parametrize("family", CONFIGS)
def test_saved_folder_is_complete(tmp_path: Path, family: str, cls: type) -> None:
    model = tiny(family, cls)
    model.save_pretrained(tmp_path / "saved")
    files = read(tmp_path / "saved")
    assert set(files) == SAVED_FILES
    for name in CODE_FILES:
        assert files[name] == (Path(eupe_hf.__file__).parent / "models" / name).read_bytes()
    assert_same(load_file(tmp_path / "saved" / "model.safetensors"), model.state_dict())
    config = json.loads(files["config.json"])
    assert config["auto_map"] == {
        "AutoConfig": "configuration_eupe.EupeConfig",
        "AutoModel": "modeling_eupe.EupeModel",
        "AutoBackbone": "modeling_eupe.EupeBackbone",
    }
    assert (config["architectures"], config["backbone_type"]) == ([cls.__name__], family)
    assert str(tmp_path).encode() not in files["config.json"] + files["preprocessor_config.json"] + files["README.md"]
    processor = json.loads(files["preprocessor_config.json"])
    module = "image_processing_eupe"
    pair = {"torchvision": f"{module}.EupeImageProcessor", "pil": f"{module}.EupeImageProcessorPil"}
    assert processor["auto_map"] == {"AutoImageProcessor": pair}
    assert processor["size"] == {"height": 64, "width": 64}
    assert_same(outputs(cls.from_pretrained(tmp_path / "saved")), outputs(model))


def test_card_names_the_licence_of_the_weights(tmp_path: Path) -> None:
    model = tiny("convnext")
    model.config.name_or_path = "facebook/EUPE-ConvNeXt-T"
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert {name: data[name] for name in LICENSE} == LICENSE
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-feature-extraction")
    assert (data["tags"], data["base_model"]) == (["eupe"], "facebook/EUPE-ConvNeXt-T")
    assert "EupeModel, EUPE ConvNeXt, width 24" in card.text
    assert "trust_remote_code=True" in card.text
    assert ModelCard(str(card)).data.to_dict() == data


@pytest.mark.parametrize(
    ("name", "base_model"),
    [
        ("eupe-convnext-t", "facebook/EUPE-ConvNeXt-T"),
        ("EUPE_ViTS16", "facebook/EUPE-ViT-S"),
        ("someone/model", "someone/model"),
        ("runs/", None),
        ("/runs/1", None),
        ("", None),
    ],
)
def test_card_names_the_repository_of_the_base(name: str, base_model: str | None) -> None:
    model = tiny("vit")
    model.config.name_or_path = name
    assert model_card(model).data.base_model == base_model


def test_saving_again_keeps_what_you_wrote(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My notes\n")
    (tmp_path / "train.py").write_text("pass\n")
    EupeImageProcessorPil(size={"height": 48, "width": 80}).save_pretrained(tmp_path)
    tiny("vit").save_pretrained(tmp_path)
    again = tiny("vit", seed=1)
    again.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My notes\n"
    assert dict(AutoImageProcessor.from_pretrained(tmp_path).size) == {"height": 48, "width": 80}
    assert set(read(tmp_path)) == SAVED_FILES | {"train.py"}
    assert_same(outputs(EupeModel.from_pretrained(tmp_path)), outputs(again))


def test_given_state_dict_is_what_is_saved(tmp_path: Path) -> None:
    model, other = tiny("vit"), tiny("vit", seed=1)
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    assert_same(load_file(tmp_path / "model.safetensors"), other.state_dict())
    assert_same(outputs(AutoModel.from_pretrained(tmp_path)), outputs(other))
    model.save_pretrained(tmp_path / "worker", is_main_process=False)
    assert read(tmp_path / "worker") == {}


class ForeignModel(EupeModel):
    """A subclass outside the package: its script must not be published with the weights."""


def test_script_of_a_subclass_is_not_published(tmp_path: Path) -> None:
    ForeignModel(tiny("vit").config).save_pretrained(tmp_path)
    assert set(read(tmp_path)) == SAVED_FILES


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("vit", "encoder.layers.1.attention.q_proj.weight"),
        ("vit", "norm.bias"),
        ("convnext", "encoder.stem.norm.bias"),
    ],
)
def test_missing_weight_of_the_encoder_is_an_error(tmp_path: Path, family: str, key: str) -> None:
    tiny(family).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[key]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for cls in (AutoModel, EupeModel, EupeBackbone):
        with pytest.raises(ValueError, match=f"lacks 1 weights of the encoder, among them {key}: "):
            cls.from_pretrained(tmp_path)
    _, info = EupeModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {key}


# ---- without the package ----

# -I: nothing of the environment; `None`: as if the package were not there, even where it is installed.
ISOLATED = """
import json, sys
sys.modules["eupe_hf"] = None
try:
    import eupe_hf
except ModuleNotFoundError as error:
    assert "eupe_hf" in str(error)
else:
    raise SystemExit("the package must not be importable here")

import numpy as np
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel

work = Path(sys.argv[1])

def outputs(model):
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = model.eval()(pixel_values)
    if type(model).__name__ == "EupeBackbone":
        return {f"map{i}": feature_map for i, feature_map in enumerate(given.feature_maps)}
    return {"tokens": given.last_hidden_state, "pooled": given.pooler_output}

def load(cls, source, name):
    loaded = cls.from_pretrained(source, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    if isinstance(loaded, torch.nn.Module):
        tensors = {key: tensor.contiguous() for key, tensor in outputs(loaded).items()}
        save_file(tensors, work / f"{name}.safetensors")
    return loaded

def refusal(cls, source, trust_remote_code):
    try:
        cls.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (ValueError, RuntimeError) as error:
        return str(error)
"""
FIRST = """
for family in ("vit", "convnext"):
    for where, source in {"folder": work / family, "hub": f"me/{family}"}.items():
        model = load(AutoModel, source, f"{family}-model-{where}")
        config = load(AutoConfig, source, "")
        processor = load(AutoImageProcessor, source, "")
        picture = np.arange(50 * 70 * 3, dtype=np.uint8).reshape(50, 70, 3)
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        print(json.dumps([config.backbone_type, pixels.double().sum().item(), list(pixels.shape)]))
    backbone = load(AutoBackbone, f"me/{family}", f"{family}-backbone-hub")
    model.save_pretrained(work / "again" / family)
    processor.save_pretrained(work / "again" / family)
    backbone.save_pretrained(work / "again" / f"{family}-backbone")
    print(json.dumps([refusal(cls, work / family, False) for cls in (AutoConfig, AutoModel, AutoImageProcessor)]))
print(json.dumps(refusal(AutoModel, work / "poisoned", True)))
"""
SECOND = """
for family in ("vit", "convnext"):
    load(AutoModel, work / "again" / family, f"{family}-model-again")
    load(AutoModel, work / "again" / f"{family}-backbone", f"{family}-model-of-backbone")
    processor = load(AutoImageProcessor, work / "again" / family, "")
    print(json.dumps(dict(processor.size)))
"""


def run_isolated(program: str, work: Path, server: HubServer) -> list:
    done = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED + program, work],
        env=hub_environment(server, work / "home of the stranger"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_process_without_the_package_loads_saves_and_shares(server: HubServer, tmp_path: Path) -> None:
    expected = {}
    for family in CONFIGS:
        model, backbone = tiny(family), tiny(family, EupeBackbone)
        model.save_pretrained(tmp_path / family)
        server.add_repo(f"me/{family}", read(tmp_path / family))
        assert_same(backbone.state_dict(), model.state_dict())
        expected |= {f"{family}-model-{where}": outputs(model) for where in ("folder", "hub", "again", "of-backbone")}
        expected[f"{family}-backbone-hub"] = outputs(backbone)
    poison(tmp_path / "vit", tmp_path / "poisoned")

    printed = run_isolated(FIRST, tmp_path, server)
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "vit")(
        torch.arange(50 * 70 * 3).to(torch.uint8).reshape(50, 70, 3).numpy(), return_tensors="pt"
    )["pixel_values"]
    total = pixels.double().sum().item()
    for family, lines in zip(CONFIGS, (printed[:3], printed[3:6]), strict=True):
        assert lines[:2] == [[family, total, [1, 3, 64, 64]]] * 2
        assert all("trust_remote_code=True" in refusal for refusal in lines[2])
    assert printed[6] == "the code of the folder ran"

    again = tmp_path / "again"
    for family in CONFIGS:
        for name in (family, f"{family}-backbone"):
            assert set(read(again / name)) == SAVED_FILES
            saved, original = (json.loads((f / "config.json").read_text()) for f in (again / name, tmp_path / family))
            assert saved["auto_map"] == original["auto_map"]
        assert (again / family / "modeling_eupe.py").read_bytes() == (
            tmp_path / family / "modeling_eupe.py"
        ).read_bytes()
    assert run_isolated(SECOND, tmp_path, server) == [{"height": 64, "width": 64}] * 2
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == set(expected)
    for name, tensors in expected.items():
        assert_same(load_file(tmp_path / f"{name}.safetensors"), tensors)


def poison(folder: Path, target: Path) -> None:
    """A copy of a saved folder whose code gives itself away when it runs."""
    target.mkdir()
    for name, content in read(folder).items():
        bad = b"\nraise RuntimeError('the code of the folder ran')\n" if name.endswith(".py") else b""
        (target / name).write_bytes(content + bad)


def test_code_of_a_folder_never_runs_where_the_package_is(server: HubServer, tmp_path: Path) -> None:
    model = tiny("vit")
    model.save_pretrained(tmp_path / "saved")
    poison(tmp_path / "saved", tmp_path / "poisoned")
    server.add_repo("me/poisoned", read(tmp_path / "poisoned"))
    for source in (tmp_path / "poisoned", "me/poisoned"):
        for trust_remote_code in (True, False, None):
            loaded = AutoModel.from_pretrained(source, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
            assert (type(loaded), type(config)) == (EupeModel, EupeConfig)
            assert type(processor).__module__ == "eupe_hf.models.image_processing_eupe"
            assert_same(outputs(loaded), outputs(model))
    assert type(AutoBackbone.from_pretrained("me/poisoned", trust_remote_code=True)) is EupeBackbone
    assert [name for name in sys.modules if name.startswith("transformers_modules.")] == []
    assert not [path for _, path in server.requests if path.endswith(".py")]


# ---- pushing ----


def metadata(server: HubServer, repo_id: str) -> dict:
    return ModelCard(server.files(repo_id)["README.md"].decode()).data.to_dict()


@pytest.mark.parametrize("order", ["model first", "processor first"])
def test_model_and_processor_share_a_repository(server: HubServer, tmp_path: Path, order: str) -> None:
    model, processor = tiny("vit"), EupeImageProcessorPil(size={"height": 48, "width": 80})
    for one in (model, processor) if order == "model first" else (processor, model):
        one.push_to_hub("me/mine", token=TOKEN)
    files = server.files("me/mine")
    assert set(files) == SAVED_FILES
    card = metadata(server, "me/mine")
    assert {name: card[name] for name in LICENSE} == LICENSE
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "image-feature-extraction")
    assert json.loads(files["preprocessor_config.json"])["size"] == {"height": 48, "width": 80}
    assert not any(str(path).encode() in files["config.json"] for path in (tmp_path, "/tmp", "_name_or_path"))
    assert_same(outputs(AutoModel.from_pretrained("me/mine")), outputs(model))
    assert AutoImageProcessor.from_pretrained("me/mine").size.width == 80


def test_saving_with_push_uploads_the_same_files(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.py").write_text("secret = 1\n")
    model = tiny("convnext")
    model.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id="me/mine")
    assert set(server.files("me/mine")) == SAVED_FILES
    assert server.files("me/mine") == {name: read(tmp_path / "out")[name] for name in SAVED_FILES}
    assert metadata(server, "me/mine")["license_name"] == LICENSE["license_name"]
    server.commit("me/mine", {"preprocessor_config.json": b'{"size": {"height": 48, "width": 80}}'})
    model.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="me/mine")
    assert server.files("me/mine")["preprocessor_config.json"] == b'{"size": {"height": 48, "width": 80}}'


def test_card_on_the_hub_is_kept_and_completed(server: HubServer) -> None:
    text = "# Mine\n\nTrained on leaves.\n"
    server.add_repo("me/bare", {"README.md": text.encode()})
    server.add_repo("me/licensed", {"README.md": f"---\nlicense: cc-by-4.0\ntags:\n- leaves\n---\n{text}".encode()})
    server.add_repo("me/other", {"README.md": f"---\ndatasets:\n- me/leaves\n---\n{text}".encode()})
    for name in ("bare", "licensed", "other"):
        tiny("vit").push_to_hub(f"me/{name}")
        assert ModelCard(server.files(f"me/{name}")["README.md"].decode()).text.lstrip() == text
    assert metadata(server, "me/bare") == LICENSE
    assert metadata(server, "me/licensed") == {"license": "cc-by-4.0", "tags": ["leaves"]}
    assert metadata(server, "me/other") == {"datasets": ["me/leaves"], **LICENSE}


def test_tags_of_a_push_reach_the_card(server: HubServer) -> None:
    tiny("vit").push_to_hub("me/mine", tags=["leaves"], revision="draft")
    assert server.files("me/mine") == {}
    card = ModelCard(server.files("me/mine", "draft")["README.md"].decode())
    assert card.data.tags == ["eupe", "leaves"]


@pytest.mark.parametrize("step", UPLOAD_STEPS)
def test_interrupted_push_leaves_the_repository_alone(server: HubServer, waits: list[float], step: str) -> None:
    server.add_repo("me/mine", {"notes.txt": b"before"})
    server.fail_uploads(500, step=step)
    model = tiny("vit")
    with pytest.raises((HfHubHTTPError, RuntimeError), match=r"500 Internal|Error while uploading"):
        model.push_to_hub("me/mine")
    assert server.files("me/mine") == {"notes.txt": b"before"}
    assert len(server.repos["me/mine"].commits) == 1
    server.clear_faults()
    model.push_to_hub("me/mine")
    assert set(server.files("me/mine")) == SAVED_FILES | {"notes.txt"}
    assert_same(outputs(AutoModel.from_pretrained("me/mine")), outputs(model))
