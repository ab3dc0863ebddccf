# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' decoders on EUPE: they learn, save and load, and take pretrained weights where they are asked to."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, use_hub
from modeling_common import FAMILIES, pixels, randomise, tiny_config
from published import FILE, REPO, checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.mask2former import configuration_mask2former

import eupe_hf
from eupe_hf import (
    CheckpointError,
    EupeBackbone,
    EupeConfig,
    EupeForSegmentation,
    EupeModel,
    EupePyramidBackbone,
    EupePyramidConfig,
    load_backbone_weights,
    variant_config,
)


def encoder_config(family: str, **overrides: Any) -> EupeConfig:
    """Four maps: four blocks of width 32, or four stages of widths 8 to 20. The features differ between images."""
    fields = {"layerscale_value": 0.5, "out_indices": [1, 2, 3, 4]}
    fields |= {"num_hidden_layers": 4} if family == "vit" else {}
    return tiny_config(family, **{**fields, **overrides})


def pyramid_config(family: str, strides: list[int]) -> EupePyramidConfig:
    return EupePyramidConfig(encoder_config=encoder_config(family), strides=strides, hidden_size=16)


def upernet(family: str, backbone_config: EupeConfig | None = None) -> UperNetForSemanticSegmentation:
    backbone_config = backbone_config or encoder_config(family)
    config = UperNetConfig(
        backbone_config=backbone_config, num_labels=3, hidden_size=16, auxiliary_channels=8, pool_scales=[1, 2],
        auxiliary_in_channels=backbone_config.hidden_sizes[2],
    )  # fmt: skip
    return UperNetForSemanticSegmentation(config)


def dpt(family: str, **overrides: Any) -> DPTForDepthEstimation:
    backbone_config = encoder_config(family, **{"reshape_hidden_states": False, **overrides})
    config = DPTConfig(
        backbone_config=backbone_config, hidden_size=backbone_config.hidden_size, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )  # fmt: skip
    return DPTForDepthEstimation(config)


def mask2former(family: str, backbone_config: EupeConfig | None = None) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=backbone_config or pyramid_config(family, [4, 8, 16, 32]), num_labels=3, feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, dim_feedforward=16, num_queries=5, train_num_points=64,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config)


def rt_detr(family: str, backbone_config: EupeConfig | None = None) -> RTDetrV2ForObjectDetection:
    channels = [backbone_config.hidden_sizes[i - 1] for i in backbone_config.out_indices] if backbone_config else None
    config = RTDetrV2Config(
        backbone_config=backbone_config or pyramid_config(family, [8, 16, 32]), num_labels=3, encoder_hidden_dim=16,
        encoder_in_channels=channels or [16] * 3, encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16,
        num_queries=10, decoder_in_channels=[16] * 3, decoder_ffn_dim=16, decoder_layers=2,
        decoder_attention_heads=2, num_denoising=0,
    )  # fmt: skip
    return RTDetrV2ForObjectDetection(config)


def loss_of(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The loss of a batch of two images against made-up labels."""
    batch, (height, width) = len(pixel_values), pixel_values.shape[2:]
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, DPTForDepthEstimation):  # transformers has no loss for it
        depth = 1 + 4 * torch.rand(batch, height, width, generator=generator)
        return nn.functional.l1_loss(model(pixel_values).predicted_depth, depth)
    if isinstance(model, UperNetForSemanticSegmentation):
        labels = {"labels": torch.randint(0, 3, (batch, height, width), generator=generator)}
    elif isinstance(model, Mask2FormerForUniversalSegmentation):
        masks = torch.randint(0, 2, (2, height, width), generator=generator).float()
        labels = {"mask_labels": [masks] * batch, "class_labels": [torch.tensor([0, 2])] * batch}
    else:
        boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
        labels = {"labels": [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}] * batch}
    return model(pixel_values, **labels).loss


def main_output(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        outputs = model.eval()(pixel_values)
    return outputs[next(name for name in ("logits", "predicted_depth", "masks_queries_logits") if name in outputs)]


AUTO = {
    upernet: AutoModelForSemanticSegmentation,
    dpt: AutoModelForDepthEstimation,
    mask2former: AutoModelForUniversalSegmentation,
    rt_detr: AutoModelForObjectDetection,
}
# by transformers' design without gradient: the first fusion layer of DPT has nothing to add to
WITHOUT_GRADIENT = ("neck.fusion_stage.layers.0.residual_layer1",)
DECODERS = [(build, family) for build in AUTO for family in FAMILIES if (build, family) != (dpt, "convnext")]


@pytest.mark.parametrize(("build", "family"), DECODERS, ids=lambda value: getattr(value, "__name__", value))
def test_decoder_learns_and_is_saved_and_loaded(build: Callable, family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, pixel_values = build(family).train(), pixels(2, 64, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same random factors and points in each step
        loss = loss_of(model, pixel_values)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 1:
            trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            idle = [name for name, p in trained if p.grad is None or not p.grad.isfinite().all()]
            assert all(any(part in name for part in WITHOUT_GRADIENT) for name in idle), idle
            first = next(m for m in model.modules() if isinstance(m, EupeBackbone)).get_input_embeddings()
            assert first.weight.grad.abs().max() > 0  # reaches the other end of the encoder
        optimizer.step()
    assert losses[-1] < losses[0]
    expected = main_output(model, pixel_values)
    model.save_pretrained(tmp_path)
    again = AUTO[build].from_pretrained(tmp_path)
    assert type(again) is type(model)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())
    # a copy, since weights mapped from a file lie at odd addresses, where some of torch's convolutions round otherwise
    assert torch.equal(main_output(copy.deepcopy(again), pixel_values), expected)


@pytest.mark.parametrize(("build", "stages"), [(mask2former, [1, 2, 3, 4]), (rt_detr, [2, 3, 4])])
def test_convnext_needs_no_pyramid(build: Callable, stages: list[int]) -> None:
    torch.manual_seed(0)
    model = build("convnext", encoder_config("convnext", out_indices=stages)).train()
    loss_of(model, pixels(2, 64, 96)).backward()
    encoder = next(module for module in model.modules() if isinstance(module, EupeBackbone))
    assert encoder.get_input_embeddings().weight.grad.abs().max() > 0


def test_configuration_of_a_decoder_may_be_a_dictionary() -> None:
    for config in (encoder_config("convnext"), pyramid_config("vit", [8, 16, 32])):
        again = UperNetConfig(backbone_config=config.to_dict()).backbone_config
        assert type(again) is type(config)
        assert again.out_indices == config.out_indices


# ---- what transformers refuses ----


def test_dpt_takes_tokens_which_a_convnext_does_not_have() -> None:
    """The nearest that works: EupeForDepthEstimation, which takes all six encoders."""
    for model in (dpt("convnext"), dpt("vit", reshape_hidden_states=True)):
        with pytest.raises(ValueError, match="too many values to unpack"):
            model(pixels(1, 64, 64))
    assert dpt("vit")(pixels(1, 64, 96)).predicted_depth.shape == (1, 64, 96)


def test_rt_detr_takes_three_strides_which_a_vit_does_not_have() -> None:
    """The nearest that works: EupePyramidConfig."""
    model = rt_detr("vit", encoder_config("vit", out_indices=[2, 3, 4]))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model(pixels(1, 64, 64))


def test_mask2former_warns_of_a_backbone_that_it_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """And works all the same, as the test above shows."""
    warnings: list[str] = []
    monkeypatch.setattr(configuration_mask2former.logger, "warning_once", warnings.append)
    Mask2FormerConfig(backbone_config=pyramid_config("vit", [4, 8, 16, 32]))
    assert warnings[0].startswith("Backbone eupe_pyramid is not a supported model and may not be compatible")


def test_short_name_as_backbone_is_looked_up_on_the_hub_and_not_found(tmp_path: Path) -> None:
    """transformers' old `backbone=` takes what the Hub or timm has; `backbone_config=` is the way for us."""
    with HubServer() as server, use_hub(server, tmp_path):
        config = UperNetConfig(backbone="eupe-t")
    assert config.backbone_config.model_type == "timm_backbone"
    with pytest.raises(ImportError, match=r"requires the timm library"):
        UperNetForSemanticSegmentation(config)


_PROCESS = """
import sys
sys.modules["eupe_hf"] = None
import torch
from transformers import AutoModelForSemanticSegmentation, UperNetForSemanticSegmentation
folder = sys.argv[1]
for trust_remote_code in (False, True):
    try:
        UperNetForSemanticSegmentation.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except KeyError as error:
        print("KeyError", error)
del sys.modules["eupe_hf"]
import eupe_hf
model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
with torch.inference_mode():
    torch.save(model(torch.load(f"{folder}/pixels.pt")).logits, f"{folder}/logits.pt")
"""


def test_another_process_needs_the_package(tmp_path: Path) -> None:
    model, pixel_values = upernet("vit"), pixels(1, 64, 64)
    model.save_pretrained(tmp_path)
    torch.save(pixel_values, tmp_path / "pixels.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path(eupe_hf.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _PROCESS, str(tmp_path)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["KeyError 'eupe'"] * 2
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), main_output(model, pixel_values))


# ---- pretrained weights ----


def assert_encoder_is(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    encoder = next(module for module in model.modules() if isinstance(module, EupeBackbone))
    loaded = encoder.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_short_name_fills_the_encoder_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = upernet("vit", variant_config("eupe-t", out_indices=[3, 6, 9, 12]))
    before = {name: p.clone() for name, p in model.state_dict().items() if not name.startswith("backbone.")}
    contents, state = checkpoint("eupe-t")
    with HubServer() as server, use_hub(server, tmp_path):
        server.add_repo(REPO, {FILE: contents})
        assert load_backbone_weights(model, "eupe-t", revision="main") is model
        assert "eupe-t" not in server.repo_ids_requested()
    assert_encoder_is(model, state)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    (tmp_path / FILE).write_bytes(contents)
    assert_encoder_is(load_backbone_weights(upernet("vit", model.config.backbone_config), tmp_path / FILE), state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("build", [upernet, rt_detr])
@pytest.mark.parametrize("source_class", [EupeModel, EupeBackbone, EupeForSegmentation])
def test_folder_fills_the_encoder(build: Callable, family: str, source_class: type, tmp_path: Path) -> None:
    # how the features are used, here which stages, is the decoder's own choice
    source = randomise(source_class(encoder_config(family, out_indices=[4])))
    source.save_pretrained(tmp_path)
    assert_encoder_is(load_backbone_weights(build(family), tmp_path), source.base_model.state_dict())


def test_weights_take_the_dtype_of_the_model(tmp_path: Path) -> None:
    source = randomise(EupeModel(encoder_config("vit")))
    source.save_pretrained(tmp_path)
    model = load_backbone_weights(upernet("vit").to(torch.bfloat16), tmp_path)
    assert_encoder_is(model, {name: tensor.to(torch.bfloat16) for name, tensor in source.state_dict().items()})


def test_other_architecture_is_refused_by_field(tmp_path: Path) -> None:
    EupeModel(encoder_config("vit", hidden_size=48)).save_pretrained(tmp_path)
    model = upernet("vit")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"differs in hidden_size \(32, the weights have 48\), intermediate_size"):
        load_backbone_weights(model, tmp_path)
    EupeModel(encoder_config("convnext")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"backbone_type \('vit', the weights have 'convnext'\)"):
        load_backbone_weights(model, tmp_path)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    EupeModel(encoder_config("vit")).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \('encoder.layers.1.mlp.up_proj.weight'\)"):
        load_backbone_weights(upernet("vit"), tmp_path)


def test_model_without_one_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="This Linear has no EUPE encoder in it: build it with an EupeConfig"):
        load_backbone_weights(nn.Linear(2, 2), "eupe-t")
    pair = nn.ModuleDict({"left": upernet("vit"), "right": upernet("vit")})
    with pytest.raises(ValueError, match=r"has 2 EUPE encoders \(left.backbone, right.backbone\): pass one part"):
        load_backbone_weights(pair, "eupe-t")
    with torch.device("meta"):
        model = EupePyramidBackbone(pyramid_config("vit", [8, 16]))
    with pytest.raises(ValueError, match="on the meta device"):
        load_backbone_weights(model, "eupe-t")


def test_name_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    with HubServer() as server, use_hub(server, tmp_path), pytest.raises(OSError, match="someone/eupe-x"):
        load_backbone_weights(upernet("vit"), "someone/eupe-x")
