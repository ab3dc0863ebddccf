# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The feature pyramid: strides and widths, where each level comes from, and the backbone that is made of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, use_hub
from huggingface_hub.errors import StrictDataclassError
from modeling_common import FAMILIES, pixels, randomise, tiny_config
from published import FILE, REPO, checkpoint
from transformers import AutoBackbone, AutoConfig

from eupe_hf import EupeBackbone, EupeModel, EupePyramidBackbone, EupePyramidConfig
from eupe_hf.models.modeling_eupe_pyramid import EupeFeaturePyramid


STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("in_channels", "in_strides", "sources"),
    [
        ((24,), (16,), (16, 16, 16, 16)),  # a ViT
        ((24, 24), (16, 16), (16, 16, 16, 16)),  # two layers of a ViT
        ((8, 12, 16, 20), (4, 8, 16, 32), (4, 8, 16, 32)),  # a ConvNeXt
        ((12, 20), (8, 32), (8, 8, 8, 32)),  # of equally near stages the finer one
        ((20,), (32,), (32, 32, 32, 32)),
    ],
)
def test_every_level_has_its_stride_and_reads_the_nearest_map(in_channels, in_strides, sources) -> None:
    torch.manual_seed(0)
    pyramid = EupeFeaturePyramid(in_channels, in_strides, STRIDES, 16)
    assert pyramid.sources == sources
    maps = [
        torch.randn(2, c, 64 // s, 96 // s, requires_grad=True) for c, s in zip(in_channels, in_strides, strict=True)
    ]
    levels = pyramid(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 16, 64 // s, 96 // s) for s in STRIDES]
    for level, source in zip(levels, sources, strict=True):
        read = torch.autograd.grad(level.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in read] == [stride == source for stride in in_strides]
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level.mean(1)), atol=1e-5, rtol=0)  # it is normed


def test_odd_sides_are_rounded_up_for_coarser_levels() -> None:
    levels = EupeFeaturePyramid((8,), (16,), (8, 16, 32), 4)([torch.randn(1, 8, 5, 7)])
    assert [tuple(level.shape[2:]) for level in levels] == [(10, 14), (5, 7), (3, 4)]


# ---- the backbone ----


def tiny_pyramid(family: str, **overrides) -> EupePyramidConfig:
    return EupePyramidConfig(
        encoder_config=tiny_config(family, layerscale_value=0.5), **{"hidden_size": 16, **overrides}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_follows_the_contract(family: str) -> None:
    config = tiny_pyramid(family, strides=[4, 8, 16, 32], out_features=["stride8", "stride32"])
    backbone = AutoBackbone.from_config(config).eval()
    assert type(backbone) is EupePyramidBackbone
    assert backbone.stage_names == ["stride4", "stride8", "stride16", "stride32"]
    assert (backbone.out_features, backbone.out_indices) == (["stride8", "stride32"], [1, 3])
    assert (backbone.channels, backbone.num_features) == ([16, 16], [16] * 4)
    with torch.inference_mode():
        outputs = backbone(pixels(2, 64, 96), output_hidden_states=True)
        levels = backbone.pyramid(backbone.eupe(pixels(2, 64, 96)).feature_maps)
    assert [tuple(m.shape) for m in outputs.feature_maps] == [(2, 16, 8, 12), (2, 16, 2, 3)]
    assert all(torch.equal(m, levels[i]) for m, i in zip(outputs.feature_maps, (1, 3), strict=True))
    assert len(outputs.hidden_states) == config.encoder.num_stages + 1
    with torch.inference_mode():
        assert len(backbone(pixels(2, 64, 96), return_dict=False)[0]) == 2


def test_convnext_gives_all_its_stages_and_a_vit_what_is_chosen() -> None:
    config = tiny_pyramid("convnext")
    assert config.out_features == ["stride8", "stride16", "stride32"]
    assert (config.encoder.out_indices, config.encoder.out_strides) == ([1, 2, 3, 4], [4, 8, 16, 32])
    assert config.encoder.out_channels == [8, 12, 16, 20]
    chosen = EupePyramidConfig(encoder_config=tiny_config("convnext", out_indices=[0, 4]))
    assert (chosen.encoder.out_strides, chosen.encoder.out_channels) == ([4, 32], [8, 20])
    assert tiny_pyramid("vit").encoder.out_strides == [16]
    layers = EupePyramidConfig(encoder_config=tiny_config("vit", out_indices=[1, 3], reshape_hidden_states=False))
    assert (layers.encoder.out_strides, layers.encoder.out_channels) == ([16, 16], [32, 32])
    assert layers.encoder.reshape_hidden_states  # the pyramid reads maps
    assert EupePyramidConfig().encoder.hidden_size == 384


def test_configuration_comes_back_from_json_and_takes_overrides(tmp_path: Path) -> None:
    config = tiny_pyramid("convnext", strides=[8, 16], out_indices=[1])
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is EupePyramidConfig
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert "stage_names" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path, out_indices=[0]).out_features == ["stride8"]
    assert AutoConfig.from_pretrained(tmp_path, strides=[4, 8]).out_features == ["stride4", "stride8"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": []}, "powers of 2 in ascending order"),
        ({"strides": [8, 12]}, r"powers of 2 in ascending order, got \[8, 12\]"),
        ({"strides": [16, 8]}, "powers of 2 in ascending order"),
        ({"strides": [8, 8]}, "powers of 2 in ascending order"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"out_features": ["stage1"]}, "out_features must be a subset"),
    ],
)
def test_impossible_configuration_is_refused(fields: dict, message: str) -> None:
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_pyramid("vit", **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_reproduces_every_map(family: str, tmp_path: Path) -> None:
    backbone = randomise(EupePyramidBackbone(tiny_pyramid(family))).eval()
    backbone.save_pretrained(tmp_path)
    again, info = EupePyramidBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = backbone.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    assert all(parameter.isfinite().all() for parameter in EupePyramidBackbone(tiny_pyramid(family)).parameters())
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoBackbone": "modeling_eupe_pyramid.EupePyramidBackbone",
        "AutoConfig": "configuration_eupe_pyramid.EupePyramidConfig",
    }


@pytest.mark.parametrize("source_class", [EupeModel, EupeBackbone])
def test_encoder_is_taken_under_a_new_pyramid(source_class: type, tmp_path: Path) -> None:
    source = randomise(source_class(tiny_config("convnext")))
    source.save_pretrained(tmp_path)
    backbone = EupePyramidBackbone.from_pretrained(tmp_path, strides=[8, 16], hidden_size=24)
    assert backbone.channels == [24, 24]
    state = source.state_dict()
    assert backbone.eupe.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.eupe.state_dict().items())


def test_short_name_is_taken_under_a_new_pyramid(tmp_path: Path) -> None:
    contents, state = checkpoint("eupe-t")
    with HubServer() as server, use_hub(server, tmp_path):
        server.add_repo(REPO, {FILE: contents})
        backbone = EupePyramidBackbone.from_pretrained("eupe-t", hidden_size=24)
    assert backbone.config.name_or_path == "eupe-t"
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.eupe.state_dict().items())


_ISOLATED = """
import sys
sys.modules["eupe_hf"] = None
import torch
from transformers import AutoBackbone, AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
backbone_class = get_class_from_dynamic_module(config.auto_map["AutoBackbone"], folder)
backbone = backbone_class.from_pretrained(folder).eval()
with torch.inference_mode():
    torch.save(backbone(torch.load(f"{folder}/pixels.pt")).feature_maps, f"{folder}/maps.pt")
"""


def test_process_without_the_package_computes_the_same(tmp_path: Path) -> None:
    backbone, pixel_values = randomise(EupePyramidBackbone(tiny_pyramid("vit"))).eval(), pixels(1, 64, 96)
    backbone.save_pretrained(tmp_path)
    torch.save(pixel_values, tmp_path / "pixels.pt")
    process = subprocess.run(
        [sys.executable, "-I", "-c", _ISOLATED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    with torch.inference_mode():
        expected = backbone(pixel_values).feature_maps
    for found, level in zip(torch.load(tmp_path / "maps.pt"), expected, strict=True):
        torch.testing.assert_close(found, level)
