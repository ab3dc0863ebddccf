# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of an EUPE encoder's tensors in three layouts, and the conversion between them.

- "raw": upstream's `.pt`, a flat state dict (ViTs with one fused qkv layer and its bias mask);
- "dinov3": transformers' own `DINOv3ViTModel` / `DINOv3ConvNextModel`;
- "eupe": this package.

Tensors are only split, joined and renamed, so a round trip is bit-equal. The one exception is the key third of a ViT's
qkv bias: upstream masks it out, and it comes back as zeros.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

import torch

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe import EupeModel
from eupe_hf.models.modeling_eupe_vit import rotary_periods
from eupe_hf.models.reading_eupe import CheckpointError
from eupe_hf.variants import VARIANTS, Variant, variant_config


Layout = Literal["raw", "dinov3", "eupe"]
StateDict = dict[str, torch.Tensor]

# Keys that give away a checkpoint of another model, most telling first.
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


# Every block has one of these keys, so a checkpoint is recognised even if a few are missing.
_SIGNATURES: tuple[tuple[str, Layout, str], ...] = (
    (r"blocks\.(\d+)\.attn\.qkv\.bias_mask", "raw", "vit"),
    (r"stages\.(\d+)\.\d+\.dwconv\.weight", "raw", "convnext"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.q_proj\.weight", "dinov3", "vit"),
    (r"(?:model\.)?stages\.(\d+)\.layers\.\d+\.depthwise_conv\.weight", "dinov3", "convnext"),
    (r"encoder\.layers\.(\d+)\.attention\.q_proj\.weight", "eupe", "vit"),
    (r"encoder\.stages\.(\d+)\.layers\.\d+\.depthwise_conv\.weight", "eupe", "convnext"),
)
# A checkpoint is a published model if it has more than this share of its names and shapes; the others are reported one
# by one. The models differ in every width, or in two thirds of the blocks.
_SAME_MODEL = 0.9


def recognise(state: Mapping[str, torch.Tensor]) -> tuple[Layout, Variant | None]:
    """Recognise a state dict by its tensors.

    Args:
        state: Tensors by name, see `tensor_files.read_state_dict`.

    Returns:
        The layout, and which of the six models it is; `None` for an encoder of another size.

    Raises:
        CheckpointError: It is not an EUPE encoder. The message says what it looks like.
    """
    for pattern, layout, family in _SIGNATURES:
        if any(re.fullmatch(pattern, key) for key in state):
            return layout, _nearest(_canonical(state, layout), layout, family)
    looks = next((what for pattern, what in _STRANGERS if any(re.search(pattern, key) for key in state)), None)
    raise CheckpointError(
        f"This is not an EUPE encoder{f'; it looks like {looks}' if looks else ''}. Its first keys are "
        f"{', '.join(sorted(state)[:5])}; an EUPE ViT has keys like 'blocks.0.attn.qkv.bias_mask', an EUPE ConvNeXt "
        "'stages.0.0.dwconv.weight'."
    )


def _nearest(state: Mapping[str, torch.Tensor], layout: Layout, family: str) -> Variant | None:
    shares = {}
    for name, variant in VARIANTS.items():
        if variant.config["backbone_type"] == family:
            expected = _published_shapes(name, layout)
            same = sum(key in state and tuple(state[key].shape) == shape for key, shape in expected.items())
            shares[name] = same / max(len(expected), len(state))
    best = max(shares, key=lambda name: shares[name])
    return VARIANTS[best] if shares[best] > _SAME_MODEL else None


def describe(state: Mapping[str, torch.Tensor]) -> str:
    """Sizes of an EUPE-like encoder for messages, as in "ViT of width 1024 with 24 blocks"."""
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


# Our name, the raw one, and DINOv3's. A name that ends with a dot stands for a weight and a bias.
_Row = tuple[str, str, str]

_VIT_EMBEDDINGS: tuple[_Row, ...] = (
    ("cls_token", "cls_token", "embeddings.cls_token"),
    ("register_tokens", "storage_tokens", "embeddings.register_tokens"),
    ("mask_token", "mask_token", "embeddings.mask_token"),
    ("patch_embeddings.", "patch_embed.proj.", "embeddings.patch_embeddings."),
)
_VIT_BLOCK: tuple[_Row, ...] = (
    ("norm1.", "norm1.", "norm1."),
    ("attention.o_proj.", "attn.proj.", "attention.o_proj."),
    ("layer_scale1", "ls1.gamma", "layer_scale1.lambda1"),
    ("norm2.", "norm2.", "norm2."),
    ("mlp.up_proj.", "mlp.fc1.", "mlp.up_proj."),
    ("mlp.down_proj.", "mlp.fc2.", "mlp.down_proj."),
    ("layer_scale2", "ls2.gamma", "layer_scale2.lambda1"),
)
_QKV_PARTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight", "v_proj.bias")
_CONVNEXT_LAYER: tuple[_Row, ...] = (
    ("depthwise_conv.", "dwconv.", "depthwise_conv."),
    ("layer_norm.", "norm.", "layer_norm."),
    ("pointwise_conv1.", "pwconv1.", "pointwise_conv1."),
    ("pointwise_conv2.", "pwconv2.", "pointwise_conv2."),
    ("gamma", "gamma", "gamma"),
)


def _below(ours: str, raw: str, dinov3: str, rows: Iterable[_Row]) -> list[_Row]:
    return [(ours + row[0], raw + row[1], dinov3 + row[2]) for row in rows]


def _rows(config: EupeConfig) -> Iterator[_Row]:
    if config.backbone_type == "vit":
        yield from _below("encoder.embeddings.", "", "", _VIT_EMBEDDINGS)
        for i in range(config.num_hidden_layers):
            yield from _below(f"encoder.layers.{i}.", f"blocks.{i}.", f"model.layer.{i}.", _VIT_BLOCK)
        yield "norm.", "norm.", "norm."
        return
    for i, depth in enumerate(config.depths):
        ours, dinov3 = f"encoder.stages.{i}.", f"model.stages.{i}."
        # The stem is a convolution, then a norm. The later downsamplers are a norm, then a convolution.
        down, conv, norm = ("encoder.stem.", "0.", "1.") if i == 0 else (f"{ours}downsample.", "1.", "0.")
        rows = (("conv.", conv, conv), ("norm.", norm, norm))
        yield from _below(down, f"downsample_layers.{i}.", f"{dinov3}downsample_layers.", rows)
        for j in range(depth):
            yield from _below(f"{ours}layers.{j}.", f"stages.{i}.{j}.", f"{dinov3}layers.{j}.", _CONVNEXT_LAYER)
    yield "norm.", "norm.", "layer_norm."


def _names(config: EupeConfig, layout: Layout) -> dict[str, str]:
    """A layout's names by ours, but for the queries, keys and values that "raw" joins."""
    column = 1 if layout == "raw" else 2
    names = {
        row[0] + part: row[column] + part
        for row in _rows(config)
        for part in (("weight", "bias") if row[0].endswith(".") else ("",))
    }
    if layout == "dinov3" and config.backbone_type == "vit":
        for i in range(config.num_hidden_layers):
            ours, dinov3 = f"encoder.layers.{i}.attention", f"model.layer.{i}.attention"
            names |= {f"{ours}.{part}": f"{dinov3}.{part}" for part in _QKV_PARTS}
    return names


def _doubled_norm(config: EupeConfig) -> dict[str, str]:
    """The final norm of a raw ConvNeXt is stored twice: the second names by the first."""
    return {f"norm.{part}": f"norms.{config.num_stages - 1}.{part}" for part in ("weight", "bias")}


def expected_shapes(config: EupeConfig, layout: Layout = "eupe") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of this architecture in `layout`."""
    with torch.device("meta"):
        state = EupeModel(config).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in _renamed(state, config, layout).items()}


def to_eupe(state: Mapping[str, torch.Tensor], config: EupeConfig, layout: Layout) -> tuple[StateDict, EupeConfig]:
    """Check every tensor of a checkpoint and rename it as `EupeModel` does.

    Args:
        state: Tensors by name in `layout`, without projectors.
        config: The architecture that the checkpoint must have.
        layout: The layout of `state`.

    Returns:
        The tensors in this package's layout, and the configuration. It has `rope_periods` if a raw file carries rotary
        periods that differ from the formula.

    Raises:
        CheckpointError: A key is missing, unexpected or has another shape; a value is not finite; or a bias mask or a
            doubled norm is not EUPE's. The message names the key.
    """
    state = _canonical(state, layout)
    check_tensors(state, expected_shapes(config, layout))
    if layout == "eupe":
        return dict(state), config
    ours = {name: state[theirs] for name, theirs in _names(config, layout).items()}
    if layout == "dinov3":
        return ours, config
    if config.backbone_type == "convnext":
        for name, alias in _doubled_norm(config).items():
            if not torch.equal(state[name], state[alias]):
                raise CheckpointError(f"{name!r} and {alias!r} must hold the same values: one norm, stored twice.")
        return ours, config
    for i in range(config.num_hidden_layers):
        ours |= _split_qkv(state, f"blocks.{i}.attn.qkv", f"encoder.layers.{i}.attention")
    ours["encoder.embeddings.mask_token"] = ours["encoder.embeddings.mask_token"].unsqueeze(0)
    return ours, _with_periods(config, state["rope_embed.periods"].float())


def _split_qkv(state: Mapping[str, torch.Tensor], raw: str, ours: str) -> StateDict:
    mask = state[f"{raw}.bias_mask"]
    if not torch.equal(mask.float(), _bias_mask(mask.numel())):
        raise CheckpointError(
            f"'{raw}.bias_mask' must be ones with zeros for the key third, got "
            f"{int((mask == 0).sum())} zeros in {mask.numel()}: this is not an EUPE ViT, whose keys have no bias."
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


def from_eupe(state: Mapping[str, torch.Tensor], config: EupeConfig, layout: Layout) -> StateDict:
    """Rename tensors of this package for another layout; the inverse of `to_eupe`.

    Args:
        state: Tensors by their names in `EupeModel`.
        config: Their architecture.
        layout: The layout to write.

    Returns:
        Tensors by name in `layout`. In "raw" the key third of each qkv bias is zero.

    Raises:
        CheckpointError: The tensors do not fit the architecture; or the layout is "dinov3" and the rotary periods
            differ from the formula, so that transformers would compute other features.
    """
    check_tensors(state, expected_shapes(config))
    if layout == "dinov3" and config.rope_periods is not None:
        raise CheckpointError(
            "The rotary periods of this checkpoint differ from the formula. The DINOv3 layout has no place for them, "
            "so transformers would compute other features: write layout 'raw' or 'eupe'."
        )
    return _renamed(state, config, layout)


def _renamed(state: Mapping[str, torch.Tensor], config: EupeConfig, layout: Layout) -> StateDict:
    if layout == "eupe":
        return dict(state)
    theirs = {name: state[ours] for ours, name in _names(config, layout).items()}
    if layout == "dinov3":
        return theirs
    if config.backbone_type == "convnext":
        return theirs | {alias: state[name].clone() for name, alias in _doubled_norm(config).items()}
    for i in range(config.num_hidden_layers):
        theirs |= _join_qkv(state, f"encoder.layers.{i}.attention", f"blocks.{i}.attn.qkv")
    theirs["mask_token"] = theirs["mask_token"].squeeze(0)
    formula = rotary_periods(config.rope_theta, config.hidden_size // config.num_attention_heads)
    theirs["rope_embed.periods"] = torch.tensor(config.rope_periods) if config.rope_periods else formula
    return theirs


def _join_qkv(state: Mapping[str, torch.Tensor], ours: str, raw: str) -> StateDict:
    query_bias, value_bias = state[f"{ours}.q_proj.bias"], state[f"{ours}.v_proj.bias"]
    return {
        f"{raw}.weight": torch.cat([state[f"{ours}.{part}_proj.weight"] for part in "qkv"]),
        f"{raw}.bias": torch.cat((query_bias, torch.zeros_like(query_bias), value_bias)),
        f"{raw}.bias_mask": _bias_mask(3 * query_bias.numel()).to(query_bias.dtype),
    }


def check_tensors(state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check names, shapes and values.

    Raises:
        CheckpointError: Keys are missing or unexpected, or a tensor has another shape, is not floating point or not
            finite. The message names the first of them.
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
