# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

import pytest
import torch
from conftest import NAMES, SHARED

from eupe_hf import EupeModel, variant_config
from eupe_hf.variants import VARIANTS, find_variant, get_variant


# Parameters as upstream counts them, and ours: its ViTs count 12 x width key biases that a mask sets to zero.
PARAMETERS = {
    "eupe-t": (5_492_160, 5_489_856),
    "eupe-s": (21_601_152, 21_596_544),
    "eupe-b": (85_669_632, 85_660_416),
    "eupe-convnext-t": (27_820_128, 27_820_128),
    "eupe-convnext-s": (49_454_688, 49_454_688),
    "eupe-convnext-b": (87_566_464, 87_566_464),
}
SHAPES = {
    "eupe-t": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "eupe-s": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "eupe-b": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "eupe-convnext-t": {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "eupe-convnext-s": {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768]},
    "eupe-convnext-b": {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
}
SYNONYMS = {
    "eupe-t": ["EUPE-T", "eupe_vitt16", "facebook/EUPE-ViT-T", "EUPE-ViT-T"],
    "eupe-s": ["eupe_vits16", "EUPE_ViTS16", "facebook/EUPE-ViT-S", "facebook/eupe-vit-s", "EUPE-ViT-S"],
    "eupe-b": ["eupe_vitb16", "facebook/EUPE-ViT-B", "EUPE-ViT-B", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m"],
    "eupe-convnext-t": ["eupe_convnext_tiny", "facebook/EUPE-ConvNeXt-T", "EUPE-ConvNeXt-T"],
    "eupe-convnext-s": ["eupe_convnext_small", "facebook/EUPE-ConvNeXt-S", "Eupe-ConvNext-S"],
    "eupe-convnext-b": ["eupe_convnext_base", "facebook/EUPE-ConvNeXt-B", "EUPE-CONVNEXT-B"],
}
# facts.md, section 8: TextVQA, SQA, RealWorldQA, POPE, GQA, MME-P, SPair, NYUv2 RMSE, ADE20k; the ViTs' IN1k zero-shot
# and k-NN; GFLOPs at 256 / 512; ms on the phone at 256 / 512.
PAPER = {
    "eupe-t": (42.0, 69.5, 50.0, 82.4, 61.4, 1258.0, 37.2, 0.571, 36.7),
    "eupe-s": (44.1, 69.3, 51.7, 84.5, 65.0, 1304.9, 46.5, 0.455, 46.6),
    "eupe-b": (50.4, 69.7, 55.5, 85.9, 67.3, 1374.5, 51.3, 0.391, 52.4),
    "eupe-convnext-t": (43.7, 68.8, 47.9, 83.4, 63.0, 1278.1, 41.3, 0.430, 43.5),
    "eupe-convnext-s": (45.0, 68.9, 50.5, 84.0, 64.7, 1284.2, 40.1, 0.388, 46.8),
    "eupe-convnext-b": (46.4, 70.1, 53.3, 84.7, 65.8, 1348.9, 37.7, 0.365, 48.9),
}
CLASSIFICATION = {"eupe-t": (50.5, 66.3), "eupe-s": (69.8, 78.2), "eupe-b": (79.7, 84.1)}
COST = {
    "eupe-t": ((4, 17), (6.8, 38.3)),
    "eupe-s": ((12, 63), (17.1, 97.9)),
    "eupe-b": ((47, 216), (55.2, 305.2)),
    "eupe-convnext-t": ((5, 20), (22.4, 82.4)),
    "eupe-convnext-s": ((11, 46), (38.5, 141.9)),
    "eupe-convnext-b": ((20, 81), (59.3, 222.7)),
}
BENCHMARKS = ["TextVQA", "SQA", "RealWorldQA", "POPE", "GQA", "MME-P", "SPair-71k", "NYUv2", "ADE20k"]


def test_variants_are_the_six():
    assert list(VARIANTS) == list(PARAMETERS) == list(SHAPES) == list(SYNONYMS)
    assert len(VARIANTS) == 6


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one_without_masked_key_biases(name):
    with torch.device("meta"):
        model = EupeModel(variant_config(name))
    published, ours = PARAMETERS[name]
    assert VARIANTS[name].num_parameters == published
    assert sum(parameter.numel() for parameter in model.parameters()) == ours
    config = model.config
    key_biases = 12 * config.hidden_size if config.backbone_type == "vit" else 0
    assert published - ours == key_biases


@pytest.mark.parametrize("name", NAMES)
def test_config_has_the_published_shape(name):
    config = variant_config(name)
    assert {field: getattr(config, field) for field in SHAPES[name]} == SHAPES[name]
    is_vit = "convnext" not in name
    assert config.backbone_type == ("vit" if is_vit else "convnext")
    assert (config.patch_size, config.num_prefix_tokens) == ((16, 5) if is_vit else (32, 0))
    assert config.num_stages == (12 if is_vit else 4)
    assert config.name_or_path == VARIANTS[name].repo_id


@pytest.mark.parametrize("name", NAMES)
def test_synonyms_find_the_variant_in_any_case(name):
    variant = VARIANTS[name]
    spellings = [*SYNONYMS[name], variant.timm_name, variant.raw_file.removesuffix(".pt"), variant.repo_id]
    for spelling in spellings:
        for form in (spelling, spelling.lower(), spelling.upper()):
            assert find_variant(form) is variant
            assert get_variant(form) is variant
    assert variant_config(spellings[0]).to_dict() == variant_config(name).to_dict()


def test_no_synonym_names_two_variants():
    synonyms = [synonym for variant in VARIANTS.values() for synonym in variant.synonyms]
    # short name, Hub id, file, torch.hub and timm name; a ConvNeXt's file is called as its short name
    assert len(synonyms) == len(set(synonyms)) == 3 * 5 + 3 * 4


def test_names_follow_the_published_files():
    assert VARIANTS["eupe-s"].repo_id == "facebook/EUPE-ViT-S"
    assert VARIANTS["eupe-s"].raw_file == "EUPE-ViT-S.pt"
    assert VARIANTS["eupe-convnext-b"].repo_id == "facebook/EUPE-ConvNeXt-B"
    assert VARIANTS["eupe-convnext-b"].raw_file == "EUPE-ConvNeXt-B.pt"
    for variant in VARIANTS.values():
        assert variant.raw_file == f"{variant.repo_id.removeprefix('facebook/')}.pt"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("eupe-x", None), ("eupe-vits", "eupe-s"), ("eupe-convnext-tiny", "eupe-convnext-t"), ("eupe_vits14", "eupe-s")],
)
def test_unknown_name_lists_all_and_the_nearest(given, nearest):
    assert find_variant(given) is None
    with pytest.raises(ValueError, match="Unknown EUPE model") as caught:
        variant_config(given)
    message = str(caught.value)
    assert repr(given) in message
    assert all(name in message for name in NAMES)
    assert "Did you mean" in message
    if nearest is not None:
        assert f"Did you mean {nearest!r}?" in message


@pytest.mark.parametrize("given", ["google/siglip-base-patch16-224", "", "zzz"])
def test_name_of_another_model_gets_no_hint(given):
    with pytest.raises(ValueError, match="Unknown EUPE model") as caught:
        get_variant(given)
    assert "Did you mean" not in str(caught.value)


def test_overrides_reach_the_config():
    config = variant_config("eupe-s", out_indices=[3, 6, 9, 12], num_labels=10, rope_theta=50.0)
    assert (config.out_indices, config.num_labels, config.rope_theta) == ([3, 6, 9, 12], 10, 50.0)
    assert config.hidden_size == 384
    config = variant_config("eupe-convnext-t", out_features=["stage1", "stage4"], attn_implementation="eager")
    assert (config.out_indices, config._attn_implementation) == ([1, 4], "eager")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("hidden_sise", "hidden_size"), ("num_register_token", "num_register_tokens"), ("out_index", "out_indices")],
)
def test_unknown_override_fails_naming_the_nearest_field(override, nearest):
    with pytest.raises(TypeError, match=rf"no field '{override}'\. Did you mean '{nearest}'\?"):
        variant_config("eupe-s", **{override: 1})


def test_configs_do_not_share_the_lists_of_the_variant():
    config = variant_config("eupe-convnext-t")
    config.depths.append(1)
    config.hidden_sizes[0] = 1
    assert variant_config("eupe-convnext-t").depths == [3, 3, 9, 3]
    assert variant_config("eupe-convnext-t").hidden_sizes == [96, 192, 384, 768]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_paper(name):
    variant = VARIANTS[name]
    expected = dict(zip(BENCHMARKS, PAPER[name], strict=True))
    if name in CLASSIFICATION:
        expected |= dict(zip(["IN1k zero shot", "IN1k kNN"], CLASSIFICATION[name], strict=True))
    assert variant.paper == expected
    assert (variant.gflops, variant.phone_ms) == COST[name]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?!\w)(?!\.\d)", text)]


def _section_eight(facts: Path) -> str:
    return facts.read_text(encoding="utf-8").split("\n## 8.")[1].split("\n## ")[0].replace("\n", " ")


@pytest.mark.skipif(not (SHARED / "facts.md").is_file(), reason=f"the list of facts is not there: {SHARED}")
def test_figures_in_this_file_are_those_in_the_list_of_facts():
    section = _section_eight(SHARED / "facts.md")
    scores, cost = section.split("GFLOPs at 256", 1)
    for name, figures in CLASSIFICATION.items():
        line = scores.split(f"ViT-{name[-1].upper()}:", 1)[1].split(". ", 1)[0]
        assert _numbers(re.sub(r"[A-Za-z][\w-]*", "", line)) == [*figures, *PAPER[name]]
    convnexts = scores.split("k-NN): ", 1)[1].split("·")
    for name, line in zip(list(PAPER)[3:], convnexts, strict=True):
        assert _numbers(line) == list(PAPER[name])
    lines = cost.split(": ", 1)[1].split("·")
    for name, line in zip(PAPER, lines, strict=True):
        assert _numbers(line)[:4] == [*COST[name][0], *COST[name][1]]
