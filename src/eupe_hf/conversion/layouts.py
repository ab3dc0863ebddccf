# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of an EUPE encoder's tensors in three layouts, and the way from one to another.

- "raw": upstream's `.pt`, a flat state dict (ViTs with one fused qkv layer and its bias mask);
- "dinov3": transformers' own `DINOv3ViTModel` / `DINOv3ConvNextModel`;
- "eupe": this package.

Tensors are never changed, only split, joined and renamed, so a round trip is bit-equal; the one exception is the key
third of a ViT's qkv bias, which upstream masks out and which comes back as zeros.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe import EupeModel
from eupe_hf.models.modeling_eupe_vit import rotary_periods
from eupe_hf.variants import VARIANTS, Variant, variant_config


Layout = Literal["raw", "dinov3", "eupe"]


StateDict = dict[str, torch.Tensor]


# How a file of somebody else gives itself away, most telling first.
_STRANGERS = (
    (r"(^|\.)pos_embed$", "a ViT with learned position embeddings (timm, DINOv2 or MAE)"),
    (r"^(reg_token|blocks\.\d+\.gamma_1)$", "a ViT in timm's layout"),
    (r"^(visual|text_model|vision_model|transformer\.resblocks)\b", "a CLIP-like model with a text side"),
    (r"^(model\.)?(decoder|lm_head|embed_tokens)\b", "a language model"),
    (r"^vit\.|^encoder\.layer\.", "a ViT in transformers' older layout"),
    (r"^layer[1-4]\.\d+\.(conv|bn)1", "a ResNet"),
    (r"^stages\.\d+\.blocks\.", "a ConvNeXt in timm's layout"),
    (r"^features\.\d+", "a torchvision ConvNeXt or EfficientNet"),
    (r"^(batchnorm_layer|conv|conv_depth|segmentation_model\.1)\.", "a head without its encoder"),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be what it should be; the message names the key or file and says what to do."""


# ---- recognising ----

# Keys of which every block has one, so that a checkpoint with a few keys missing is still known for what it is.
_SIGNATURES: tuple[tuple[str, Layout, str], ...] = (
    (r"blocks\.(\d+)\.attn\.qkv\.bias_mask", "raw", "vit"),
    (r"stages\.(\d+)\.\d+\.dwconv\.weight", "raw", "convnext"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.q_proj\.weight", "dinov3", "vit"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.\d+\.depthwise_conv\.weight", "dinov3", "convnext"),
    (r"encoder\.layers\.(\d+)\.attention\.q_proj\.weight", "eupe", "vit"),
    (r"encoder\.stages\.(\d+)\.layers\.\d+\.depthwise_conv\.weight", "eupe", "convnext"),
)


# Of a published model's tensors, this share must be there in name and shape before a checkpoint is taken for it (and
# the rest reported one by one). The models differ in every width, or in two thirds of the blocks.
_SAME_MODEL = 0.9


def recognise(state: Mapping[str, torch.Tensor]) -> tuple[Layout, Variant | None]:
    """Layout and model of a state dict, from its tensors alone.

    Args:
        state: Tensors by name, unwrapped (see `checkpoints.read_state_dict`).

    Returns:
        The layout, and which of the six models it is; `None` for an encoder of another size.

    Raises:
        CheckpointError: Not an EUPE encoder; the message says what the file looks like.
    """
    for pattern, layout, family in _SIGNATURES:
        if any(re.fullmatch(pattern, key) for key in state):
            return layout, _nearest(_canonical(state, layout), layout, family)
    looks = next((what for pattern, what in _STRANGERS if any(re.search(pattern, key) for key in state)), None)
    raise CheckpointError(
        f"This is no EUPE encoder{f'; it looks like {looks}' if looks else ''}. Its first keys are "
        f"{', '.join(sorted(state)[:5])}; an EUPE ViT has keys like 'blocks.0.attn.qkv.bias_mask', an EUPE ConvNeXt "
        "'stages.0.0.dwconv.weight'."
    )


def _nearest(state: Mapping[str, torch.Tensor], layout: Layout, family: str) -> Variant | None:
    best, best_share = None, _SAME_MODEL
    for variant in VARIANTS.values():
        if variant.config["backbone_type"] == family:
            expected = _published_shapes(variant.name, layout)
            same = sum(key in state and tuple(state[key].shape) == shape for key, shape in expected.items())
            share = same / max(len(expected), len(state))
            if share > best_share:
                best, best_share = variant, share
    return best


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """Sizes of an EUPE-like encoder in words, for messages: "ViT of width 1024 with 24 blocks"."""
    blocks: dict[int, list[int]] = {}
    for key, tensor in state.items():
        for pattern, _, _ in _SIGNATURES:
            if match := re.fullmatch(pattern, key):
                blocks.setdefault(int(match[1]), []).append(tensor.shape[0])
    widths = [sizes[0] for _, sizes in sorted(blocks.items())]
    counts = [len(sizes) for _, sizes in sorted(blocks.items())]
    if any("depthwise_conv" in key or "dwconv" in key for key in state):
        return f"ConvNeXt with {counts} blocks of widths {widths}"
    fused = any(key.endswith("attn.qkv.bias_mask") for key in state)
    return f"ViT of width {widths[0] // 3 if fused else widths[0]} with {len(widths)} blocks"


@lru_cache
def _published_shapes(name: str, layout: Layout) -> dict[str, tuple[int, ...]]:
    return expected_shapes(variant_config(name), layout)


def _canonical(state: Mapping[str, torch.Tensor], layout: Layout) -> StateDict:
    if layout == "dinov3":  # files written before transformers 5 lack the "model." of the blocks
        return {re.sub(r"^(layer|stages)\.", r"model.\1.", key): tensor for key, tensor in state.items()}
    return dict(state)


# ---- naming ----


@dataclass(frozen=True)
class _Name:
    """One tensor's names; `raw` and `dinov3` are what other layouts call it."""

    eupe: str
    raw: str
    dinov3: str


def _module(eupe: str, raw: str, dinov3: str, parts: tuple[str, ...] = ("weight", "bias")) -> Iterator[_Name]:
    for part in parts:
        yield _Name(f"{eupe}.{part}", f"{raw}.{part}", f"{dinov3}.{part}")


def _names(config: EupeConfig) -> Iterator[_Name]:
    """Names of all tensors that the layouts share one to one: everything but queries, keys and values."""
    yield from _vit_names(config) if config.backbone_type == "vit" else _convnext_names(config)
    final = "norm" if config.backbone_type == "vit" else "layer_norm"
    yield from _module("norm", "norm", final)


def _vit_names(config: EupeConfig) -> Iterator[_Name]:
    ours = "encoder.embeddings"
    yield _Name(f"{ours}.cls_token", "cls_token", "embeddings.cls_token")
    yield _Name(f"{ours}.register_tokens", "storage_tokens", "embeddings.register_tokens")
    yield _Name(f"{ours}.mask_token", "mask_token", "embeddings.mask_token")
    yield from _module(f"{ours}.patch_embeddings", "patch_embed.proj", "embeddings.patch_embeddings")
    for i in range(config.num_hidden_layers):
        ours, raw, dinov3 = f"encoder.layers.{i}", f"blocks.{i}", f"model.layer.{i}"
        yield from _module(f"{ours}.norm1", f"{raw}.norm1", f"{dinov3}.norm1")
        yield from _module(f"{ours}.attention.o_proj", f"{raw}.attn.proj", f"{dinov3}.attention.o_proj")
        yield _Name(f"{ours}.layer_scale1", f"{raw}.ls1.gamma", f"{dinov3}.layer_scale1.lambda1")
        yield from _module(f"{ours}.norm2", f"{raw}.norm2", f"{dinov3}.norm2")
        yield from _module(f"{ours}.mlp.up_proj", f"{raw}.mlp.fc1", f"{dinov3}.mlp.up_proj")
        yield from _module(f"{ours}.mlp.down_proj", f"{raw}.mlp.fc2", f"{dinov3}.mlp.down_proj")
        yield _Name(f"{ours}.layer_scale2", f"{raw}.ls2.gamma", f"{dinov3}.layer_scale2.lambda1")


def _convnext_names(config: EupeConfig) -> Iterator[_Name]:
    for i, depth in enumerate(config.depths):
        ours, dinov3 = f"encoder.stages.{i}", f"model.stages.{i}"
        # the stem is convolution, then norm; the later downsamplers are norm, then convolution
        conv, norm = (0, 1) if i == 0 else (1, 0)
        down = "encoder.stem" if i == 0 else f"{ours}.downsample"
        yield from _module(f"{down}.conv", f"downsample_layers.{i}.{conv}", f"{dinov3}.downsample_layers.{conv}")
        yield from _module(f"{down}.norm", f"downsample_layers.{i}.{norm}", f"{dinov3}.downsample_layers.{norm}")
        for j in range(depth):
            ours_j, raw, dinov3_j = f"{ours}.layers.{j}", f"stages.{i}.{j}", f"{dinov3}.layers.{j}"
            yield from _module(f"{ours_j}.depthwise_conv", f"{raw}.dwconv", f"{dinov3_j}.depthwise_conv")
            yield from _module(f"{ours_j}.layer_norm", f"{raw}.norm", f"{dinov3_j}.layer_norm")
            yield from _module(f"{ours_j}.pointwise_conv1", f"{raw}.pwconv1", f"{dinov3_j}.pointwise_conv1")
            yield from _module(f"{ours_j}.pointwise_conv2", f"{raw}.pwconv2", f"{dinov3_j}.pointwise_conv2")
            yield _Name(f"{ours_j}.gamma", f"{raw}.gamma", f"{dinov3_j}.gamma")


def expected_shapes(config: EupeConfig, layout: Layout = "eupe") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this architecture holds in `layout`."""
    with torch.device("meta"):
        ours = {key: tuple(tensor.shape) for key, tensor in EupeModel(config).state_dict().items()}
    if layout == "eupe":
        return ours
    shapes = {getattr(name, layout): ours[name.eupe] for name in _names(config)}
    if config.backbone_type == "convnext":
        if layout == "raw":
            shapes |= {f"norms.{config.num_stages - 1}.{part}": ours[f"norm.{part}"] for part in ("weight", "bias")}
        return shapes
    width = config.hidden_size
    if layout == "raw":
        shapes["mask_token"] = (1, width)
        shapes["rope_embed.periods"] = (width // config.num_attention_heads // 4,)
    for i in range(config.num_hidden_layers):
        if layout == "raw":
            attention = f"blocks.{i}.attn.qkv"
            shapes |= {f"{attention}.weight": (3 * width, width)}
            shapes |= {f"{attention}.{part}": (3 * width,) for part in ("bias", "bias_mask")}
        else:
            attention = f"model.layer.{i}.attention"
            shapes |= {f"{attention}.{part}_proj.weight": (width, width) for part in "qkv"}
            shapes |= {f"{attention}.{part}_proj.bias": (width,) for part in "qv"}
    return shapes


# ---- converting ----


def to_eupe(state: Mapping[str, torch.Tensor], config: EupeConfig, layout: Layout) -> tuple[StateDict, EupeConfig]:
    """Name the tensors of a checkpoint as `EupeModel` does, after checking every one.

    Args:
        state: Tensors by name in `layout`, without projectors.
        config: The architecture that the checkpoint must have.
        layout: The layout of `state`.

    Returns:
        The tensors in this package's layout, and the configuration, with `rope_periods` set where a raw file carries
        other rotary periods than the formula gives.

    Raises:
        CheckpointError: Missing, unexpected or misshapen keys, values that are not finite, a bias mask or a doubled
            norm that is not what EUPE has. Each names the key.
    """
    state = _canonical(state, layout)
    check_tensors(state, expected_shapes(config, layout))
    if layout == "eupe":
        return dict(state), config
    ours = {name.eupe: state[getattr(name, layout)] for name in _names(config)}
    if config.backbone_type == "convnext":
        if layout == "raw":
            _check_doubled_norm(state, config)
        return ours, config
    for i in range(config.num_hidden_layers):
        attention = f"encoder.layers.{i}.attention"
        if layout == "raw":
            ours |= _split_qkv(state, f"blocks.{i}.attn.qkv", attention)
        else:
            theirs = f"model.layer.{i}.attention"
            ours |= {f"{attention}.{part}": state[f"{theirs}.{part}"] for part in _QKV_PARTS}
    if layout == "raw":
        ours["encoder.embeddings.mask_token"] = ours["encoder.embeddings.mask_token"].unsqueeze(0)
        config = _with_periods(config, state["rope_embed.periods"].float())
    return ours, config


_QKV_PARTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight", "v_proj.bias")


def _split_qkv(state: Mapping[str, torch.Tensor], raw: str, ours: str) -> StateDict:
    mask = state[f"{raw}.bias_mask"]
    if not torch.equal(mask.float(), _bias_mask(mask.numel())):
        raise CheckpointError(
            f"'{raw}.bias_mask' must be ones with zeros for the key third, got "
            f"{int((mask == 0).sum())} zeros in {mask.numel()}: this is no EUPE ViT, whose keys have no bias."
        )
    query, key, value = state[f"{raw}.weight"].chunk(3)
    query_bias, _, value_bias = state[f"{raw}.bias"].chunk(3)
    tensors = (query, query_bias, key, value, value_bias)
    return {f"{ours}.{part}": tensor.contiguous() for part, tensor in zip(_QKV_PARTS, tensors, strict=True)}


def _bias_mask(size: int) -> torch.Tensor:
    mask = torch.ones(size)
    mask[size // 3 : 2 * size // 3] = 0
    return mask


def _with_periods(config: EupeConfig, periods: torch.Tensor) -> EupeConfig:
    head_dim = config.hidden_size // config.num_attention_heads
    if torch.equal(periods, rotary_periods(config.rope_theta, head_dim)):
        return config
    if not (periods > 0).all():
        raise CheckpointError(f"'rope_embed.periods' must be positive, got {periods.tolist()}.")
    return EupeConfig(**{**config.to_dict(), "rope_periods": periods.tolist()})


def _check_doubled_norm(state: Mapping[str, torch.Tensor], config: EupeConfig) -> None:
    for part in ("weight", "bias"):
        alias = f"norms.{config.num_stages - 1}.{part}"
        if not torch.equal(state[f"norm.{part}"], state[alias]):
            raise CheckpointError(f"'norm.{part}' and {alias!r} must hold the same values (one norm, stored twice).")


def from_eupe(state: Mapping[str, torch.Tensor], config: EupeConfig, layout: Layout) -> StateDict:
    """Write tensors of this package in another layout; the inverse of `to_eupe`.

    Args:
        state: Tensors as `EupeModel` names them.
        config: Their architecture.
        layout: The layout to write.

    Returns:
        Tensors by name in `layout`. In "raw" the key third of each qkv bias is zero.

    Raises:
        CheckpointError: The tensors do not fit the architecture; or the rotary periods are not those that
            transformers' DINOv3 computes, so that layout would give other features.
    """
    check_tensors(state, expected_shapes(config))
    if layout == "eupe":
        return dict(state)
    theirs = {getattr(name, layout): state[name.eupe] for name in _names(config)}
    if config.backbone_type == "convnext":
        if layout == "raw":
            last = config.num_stages - 1
            theirs |= {f"norms.{last}.{part}": state[f"norm.{part}"].clone() for part in ("weight", "bias")}
        return theirs
    if layout == "dinov3" and config.rope_periods is not None:
        raise CheckpointError(
            "The rotary periods of this checkpoint differ from the formula; the DINOv3 layout has no place for them, "
            "and transformers would compute other features. Write layout 'raw' or 'eupe' instead."
        )
    for i in range(config.num_hidden_layers):
        attention = {part: state[f"encoder.layers.{i}.attention.{part}"] for part in _QKV_PARTS}
        if layout == "raw":
            theirs |= _join_qkv(attention, f"blocks.{i}.attn.qkv")
        else:
            theirs |= {f"model.layer.{i}.attention.{part}": tensor for part, tensor in attention.items()}
    if layout == "raw":
        theirs["mask_token"] = theirs["mask_token"].squeeze(0)
        head_dim = config.hidden_size // config.num_attention_heads
        formula = rotary_periods(config.rope_theta, head_dim)
        theirs["rope_embed.periods"] = torch.tensor(config.rope_periods) if config.rope_periods else formula
    return theirs


def _join_qkv(attention: StateDict, raw: str) -> StateDict:
    query_bias, value_bias = attention["q_proj.bias"], attention["v_proj.bias"]
    return {
        f"{raw}.weight": torch.cat([attention[f"{part}_proj.weight"] for part in "qkv"]),
        f"{raw}.bias": torch.cat((query_bias, torch.zeros_like(query_bias), value_bias)),
        f"{raw}.bias_mask": _bias_mask(3 * query_bias.numel()).to(query_bias.dtype),
    }


def check_tensors(state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names, shapes and values with what is expected.

    Raises:
        CheckpointError: Naming the first keys that are missing, unexpected, misshapen, no floats or not finite.
    """
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        parts = [f"{len(keys)} {what} ({', '.join(map(repr, keys[:4]))}{', ...' if len(keys) > 4 else ''})"
                 for keys, what in ((missing, "missing"), (unexpected, "unexpected")) if keys]  # fmt: skip
        raise CheckpointError(f"The checkpoint does not fit the model: {' and '.join(parts)}.")
    for key, shape in expected.items():
        tensor = state[key]
        if tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(f"{key!r} has shape {tuple(tensor.shape)}, expected {tuple(shape)}.")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{key!r} must be floating point, got {tensor.dtype}.")
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise CheckpointError(f"{key!r} holds {bad} values that are NaN or infinite: the file is damaged.")
