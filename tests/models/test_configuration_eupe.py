# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import ast
import copy
import json
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from modeling_common import FAMILIES, NAMES, tiny_config, tiny_fields
from torch import nn
from transformers import AutoConfig

import eupe_hf
from eupe_hf import EupeConfig, EupeModel, variant_config


# ---- defaults ----


def test_config_without_arguments_is_vit_s_and_does_not_warn(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = EupeConfig()
    assert not caplog.records
    assert config.model_type == "eupe"
    assert (config.backbone_type, config.hidden_size, config.num_attention_heads) == ("vit", 384, 6)
    assert (config.num_hidden_layers, config.intermediate_size, config.patch_size) == (12, 1536, 16)
    assert (config.num_register_tokens, config.num_prefix_tokens, config.rope_theta) == (4, 5, 100.0)
    assert (config.layer_norm_eps, config.layerscale_value, config.pos_embed_rescale) == (1e-5, 1e-5, 2.0)
    assert (config.image_size, config.num_channels, config.hidden_act) == (256, 3, "gelu")
    assert config.stage_names == ["stem", *(f"stage{i}" for i in range(1, 13))]
    assert (config.out_features, config.out_indices, config.num_stages) == (["stage12"], [12], 12)


def test_convnext_config_without_arguments_is_convnext_t_and_does_not_warn(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = EupeConfig(backbone_type="convnext")
    assert not caplog.records
    assert (config.depths, config.hidden_sizes) == ([3, 3, 9, 3], [96, 192, 384, 768])
    assert (config.hidden_size, config.patch_size, config.num_prefix_tokens) == (768, 32, 0)
    assert (config.layer_norm_eps, config.layerscale_value, config.pos_embed_rescale) == (1e-6, 1e-6, None)
    assert (config.out_features, config.out_indices, config.num_stages) == (["stage4"], [4], 4)


@pytest.mark.parametrize("name", NAMES)
def test_eps_of_every_norm_is_that_of_the_family(name):
    config = variant_config(name)
    with torch.device("meta"):
        model = EupeModel(config)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    if config.backbone_type == "vit":
        assert len(norms) == 2 * 12 + 1
        assert {norm.eps for norm in norms} == {1e-5}
    else:
        assert len(norms) == 1 + 3 + sum(config.depths) + 1  # stem, downsamplers, blocks, final
        assert {norm.eps for norm in norms} == {1e-6}
    others = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    assert others == {"LayerNorm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_eps_of_every_norm_follows_the_config(family):
    norms = [m for m in EupeModel(tiny_config(family, layer_norm_eps=1e-3)).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == (2 * 3 + 1 if family == "vit" else 1 + 3 + 5 + 1)
    assert {norm.eps for norm in norms} == {1e-3}


def test_num_prefix_tokens_counts_class_token_and_registers():
    assert tiny_config("vit", num_register_tokens=0).num_prefix_tokens == 1
    assert tiny_config("vit", num_register_tokens=7).num_prefix_tokens == 8
    assert tiny_config("convnext").num_prefix_tokens == 0


@pytest.mark.parametrize(("stages", "stride"), [(1, 4), (2, 8), (3, 16), (4, 32)])
def test_patch_size_of_a_convnext_is_the_stride_of_its_last_stage(stages, stride):
    config = tiny_config("convnext", depths=[1] * stages, hidden_sizes=[8] * stages)
    assert config.patch_size == stride
    image = torch.zeros(1, 3, 64, 96)
    tokens = EupeModel(config).eval()(image).last_hidden_state.shape[1]
    assert tokens == (64 // stride) * (96 // stride)


def test_depths_and_hidden_sizes_of_a_vit_list_its_blocks():
    config = tiny_config("vit")
    assert config.depths == [1, 1, 1]
    assert config.hidden_sizes == [32, 32, 32]


# ---- checks at construction ----

WRONG_TYPES = [
    ("num_channels", "3"),
    ("num_channels", True),
    ("num_channels", None),
    ("image_size", [64, 64]),
    ("hidden_size", 32.0),
    ("patch_size", "16"),
    ("num_hidden_layers", 1.5),
    ("num_attention_heads", "4"),
    ("layer_norm_eps", "1e-5"),
    ("rope_theta", "100"),
    ("rope_periods", [1, 2]),
    ("rope_periods", 1.0),
    ("pos_embed_rescale", "2"),
    ("depths", 3),
    ("hidden_sizes", [8.0]),
    ("apply_layernorm", 1),
    ("reshape_hidden_states", "yes"),
    ("return_class_token", None),
    ("hidden_act", 3),
    ("initializer_range", "small"),
    ("drop_path_rate", None),
    ("backbone_type", "swin"),
    ("backbone_type", None),
]


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
def test_wrong_type_fails_naming_the_field(field, value):
    family = "convnext" if field in ("depths", "hidden_sizes") else "vit"
    with pytest.raises(StrictDataclassError, match=rf"'{field}'"):
        EupeConfig(**tiny_fields(family, **{field: value}))


IMPOSSIBLE = [
    ({"num_attention_heads": 5}, "hidden_size 32 must be divisible by num_attention_heads 5"),
    ({"hidden_size": 24}, "hidden_size 24 / num_attention_heads 4 gives heads of width 6.*multiple of 4"),
    ({"hidden_act": "glue"}, "hidden_act 'glue' is unknown; choose from .*gelu"),
    ({"hidden_size": -32}, "hidden_size must be at least 1, got -32"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"num_attention_heads": -4}, "num_attention_heads must be at least 1, got -4"),
    ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
    ({"patch_size": -16}, "patch_size must be at least 1, got -16"),
    ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
    ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ({"num_register_tokens": -1}, "num_register_tokens must not be negative, got -1"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive, got 0.0"),
    ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be positive"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be positive, got nan"),
    ({"layerscale_value": float("nan")}, "layerscale_value must be finite, got nan"),
    ({"initializer_range": -0.02}, "initializer_range must not be negative, got -0.02"),
    ({"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1, got 1.0"),
    ({"drop_path_rate": -0.1}, "drop_path_rate must be at least 0 and below 1, got -0.1"),
    ({"drop_path_rate": float("nan")}, "drop_path_rate must be at least 0 and below 1, got nan"),
    ({"rope_theta": 0}, "rope_theta must be positive, got 0"),
    ({"rope_theta": float("nan")}, "rope_theta must be positive, got nan"),
    ({"rope_periods": [1.0]}, "rope_periods must be 2 positive numbers .* head width 8.*got 1"),
    ({"rope_periods": []}, "rope_periods must be 2 positive numbers"),
    ({"rope_periods": [1.0, -1.0]}, "rope_periods must be 2 positive numbers"),
    ({"rope_periods": [1.0, float("inf")]}, "rope_periods must be 2 positive numbers"),
    ({"pos_embed_rescale": 0.5}, "pos_embed_rescale must be at least 1 or None, got 0.5"),
    ({"pos_embed_rescale": float("inf")}, "pos_embed_rescale must be at least 1 or None, got inf"),
]


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE)
def test_impossible_vit_fails_saying_why(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        EupeConfig(**tiny_fields("vit", **fields))


CONTRADICTIONS = [
    ("vit", {"depths": [1, 1]}, "depths describes a ConvNeXt; backbone_type is 'vit': leave depths out"),
    ("vit", {"hidden_sizes": [32]}, "hidden_sizes describes a ConvNeXt"),
    ("vit", {"out_indices": [4]}, r"out_indices must be valid indices.*got \[4\]"),
    ("vit", {"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
    ("vit", {"out_features": ["stage1"], "out_indices": [2]}, "out_features and out_indices should correspond"),
    ("vit", {"out_indices": [3, 1]}, "same order as stage_names"),
    ("convnext", {"num_hidden_layers": 4}, "num_hidden_layers describes a ViT; backbone_type is 'convnext'"),
    ("convnext", {"num_attention_heads": 4}, "num_attention_heads describes a ViT"),
    ("convnext", {"intermediate_size": 64}, "intermediate_size describes a ViT"),
    ("convnext", {"num_register_tokens": 4}, "num_register_tokens describes a ViT"),
    ("convnext", {"rope_theta": 100.0}, "rope_theta describes a ViT"),
    ("convnext", {"rope_periods": [1.0]}, "rope_periods describes a ViT"),
    ("convnext", {"pos_embed_rescale": 3.0}, "pos_embed_rescale describes a ViT"),
    ("convnext", {"patch_size": 16}, "patch_size of this ConvNeXt is 32, got 16"),
    ("convnext", {"hidden_size": 768}, "hidden_size of this ConvNeXt is 20, got 768"),
    ("convnext", {"depths": [3, 3]}, r"depths \[3, 3\] and hidden_sizes .*one entry per stage, got 2 and 4"),
    ("convnext", {"depths": []}, "depths must list at least one stage"),
    ("convnext", {"depths": [1, 0, 1, 1]}, "depths must list at least one stage, each at least 1"),
    ("convnext", {"hidden_sizes": [8, 8, 8, -8]}, "hidden_sizes must list at least one stage, each at least 1"),
]


@pytest.mark.parametrize(("family", "fields", "message"), CONTRADICTIONS)
def test_contradictory_fields_fail_saying_why(family, fields, message):
    with pytest.raises(ValueError, match=message):
        EupeConfig(**tiny_fields(family, **fields))


@pytest.mark.parametrize("family", FAMILIES)
def test_none_is_the_default_of_the_family(family):
    filled = "patch_size hidden_size num_hidden_layers num_attention_heads intermediate_size num_register_tokens"
    filled += " rope_theta depths hidden_sizes layer_norm_eps layerscale_value"
    config = EupeConfig(backbone_type=family, **dict.fromkeys(filled.split()))
    assert config.to_dict() == EupeConfig(backbone_type=family).to_dict()
    for name in filled.split():
        assert (getattr(config, name) is None) is (family == "convnext" and name not in config.to_dict())


def test_assignment_of_a_wrong_type_fails():
    config = tiny_config("vit")
    with pytest.raises(StrictDataclassError, match="'hidden_size'"):
        config.hidden_size = "wide"
    assert config.hidden_size == 32


# ---- round trips ----

ROUND_TRIPS = [
    tiny_fields("vit"),
    tiny_fields("vit", rope_periods=[1.25, 7.1], pos_embed_rescale=None, out_indices=[0, 2], num_register_tokens=0),
    tiny_fields("vit", num_labels=7, apply_layernorm=False, reshape_hidden_states=False, return_class_token=True),
    tiny_fields("vit", drop_path_rate=0.25),
    tiny_fields("convnext", drop_path_rate=0),
    tiny_fields("convnext", depths=[2, 1], hidden_sizes=[8, 16], out_features=["stem", "stage2"], layer_norm_eps=1e-4),
]


@pytest.mark.parametrize("fields", ROUND_TRIPS)
def test_json_round_trip_is_exact(fields, tmp_path):
    config = EupeConfig(**fields)
    text = config.to_json_string(use_diff=False)
    assert EupeConfig(**json.loads(text)).to_json_string(use_diff=False) == text
    config.save_pretrained(tmp_path)
    for loaded in (EupeConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is EupeConfig
        loaded.name_or_path = ""  # where it was loaded from, which AutoConfig notes, is not in the file
        assert loaded.to_json_string(use_diff=False) == text
        for name, value in fields.items():
            assert getattr(loaded, name) == value


@pytest.mark.parametrize("family", FAMILIES)
def test_json_holds_no_field_of_the_other_family(family):
    saved = json.loads(tiny_config(family).to_json_string(use_diff=False))
    assert "stage_names" not in saved
    assert ("depths" in saved) is (family == "convnext")
    assert ("rope_theta" in saved) is (family == "vit")
    assert ("pos_embed_rescale" in saved) is (family == "vit")
    assert saved["patch_size"] == (16 if family == "vit" else 32)


@pytest.mark.parametrize("fields", ROUND_TRIPS)
@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copy_and_pickle_equal_the_original(fields, clone):
    config = EupeConfig(**fields)
    twin = clone(config)
    assert twin is not config
    assert twin == config
    assert twin.to_dict() == config.to_dict()
    assert (twin.stage_names, twin.out_indices) == (config.stage_names, config.out_indices)


def test_deepcopy_shares_nothing_with_the_original():
    config = tiny_config("convnext")
    twin = copy.deepcopy(config)
    twin.depths.append(9)
    assert config.depths == [1, 1, 2, 1]


# ---- from_pretrained with overrides ----


def test_overrides_at_loading_win_over_the_file(tmp_path):
    tiny_config("vit").save_pretrained(tmp_path)
    config, unused = EupeConfig.from_pretrained(
        tmp_path, image_size=32, num_labels=5, out_indices=[1, 3], output_hidden_states=True, colour="red",
        return_unused_kwargs=True,
    )  # fmt: skip
    assert (config.image_size, config.num_labels, config.output_hidden_states) == (32, 5, True)
    assert (config.out_indices, config.out_features) == ([1, 3], ["stage1", "stage3"])
    assert unused == {"colour": "red"}


def test_overridden_depth_at_loading_changes_the_stages(tmp_path):
    tiny_config("vit").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    assert (config.num_hidden_layers, config.depths, config.hidden_sizes) == (2, [1, 1], [32, 32])
    assert (config.stage_names, config.out_indices) == (["stem", "stage1", "stage2"], [2])
    states = EupeModel(config).eval()(torch.zeros(1, 3, 32, 32), output_hidden_states=-1).hidden_states
    assert [state is not None for state in states] == [False, False, True]


def test_overridden_stages_at_loading_change_width_and_stride(tmp_path):
    tiny_config("convnext").save_pretrained(tmp_path)
    config = EupeConfig.from_pretrained(tmp_path, depths=[1, 1], hidden_sizes=[8, 16])
    assert (config.hidden_size, config.patch_size, config.stage_names) == (16, 8, ["stem", "stage1", "stage2"])


def test_impossible_override_at_loading_fails(tmp_path):
    tiny_config("vit").save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="hidden_size 33 must be divisible by num_attention_heads 4"):
        EupeConfig.from_pretrained(tmp_path, hidden_size=33)


def test_stage_names_of_an_older_file_are_not_read():
    assert EupeConfig(**tiny_fields("vit"), stage_names=["a", "b"]).stage_names == tiny_config("vit").stage_names


# ---- selected_hidden_states ----

SELECTIONS = [
    (None, set()),
    (False, set()),
    (True, {0, 1, 2, 3}),
    (0, {0}),
    (3, {3}),
    (-1, {3}),
    (-4, {0}),
    ([0, -1], {0, 3}),
    ((2, 2), {2}),
    ([], set()),
    (4, set()),
    ([-5, 1, 9], {1}),
]


@pytest.mark.parametrize(("requested", "expected"), SELECTIONS)
def test_selected_hidden_states_counts_from_the_stem(requested, expected):
    assert tiny_config("vit").selected_hidden_states(requested) == expected


def test_selected_hidden_states_default_to_the_config():
    config = tiny_config("vit", output_hidden_states=True)
    assert config.selected_hidden_states(None) == {0, 1, 2, 3}
    assert config.selected_hidden_states(False) == set()


# ---- every field is used ----


def _attributes_read(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    loads = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))
    return {node.attr for node in loads if re.search(r"(^|\.)config$", ast.unparse(node.value))}


def test_every_field_is_read_by_a_model():
    folder = Path(eupe_hf.__file__).parent / "models"
    read = set().union(*(_attributes_read(file) for file in folder.glob("modeling_eupe*.py")))
    # transformers' backbone classes read these two through the properties without underscore
    own = set(EupeConfig.__annotations__) - {"_out_features", "_out_indices"}
    assert len(own) >= 20
    assert own - read == set()
