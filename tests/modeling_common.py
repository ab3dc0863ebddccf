# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests of config and models share: tiny encoders in which every weight matters, and the golden ones."""

import math
from typing import Any

import numpy as np
import torch
from conftest import FAMILIES as FAMILIES
from conftest import FULL_SIZE as FULL_SIZE
from conftest import GOLDEN as GOLDEN
from conftest import NAMES as NAMES
from conftest import raw_weights as raw_weights
from torch import nn

from eupe_hf import EupeBackbone, EupeConfig, EupeModel, variant_config
from eupe_hf.conversion.layouts import to_eupe
from eupe_hf.variants import VARIANTS


_FIELDS = {
    "vit": {
        "backbone_type": "vit",
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_register_tokens": 2,
    },
    "convnext": {
        "backbone_type": "convnext",
        "image_size": 64,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 2, 1],
    },
}


def tiny_fields(family: str, **overrides: Any) -> dict[str, Any]:
    """Arguments of the config of a tiny encoder."""
    return {**_FIELDS[family], **overrides}


def tiny_config(family: str, **overrides: Any) -> EupeConfig:
    """Config of a tiny encoder: width 32, 3 blocks; or 4 stages of widths 8 to 20."""
    return EupeConfig(**tiny_fields(family, **overrides))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw new values for all parameters, so that each of them matters.

    As initialised, layer-scale is 1e-5 and biases are zero: then a wrong block or a forgotten bias cannot be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "token" not in name:
                noise *= 1.2 / parameter[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif "layer_scale" in name or name.endswith("gamma"):
                noise = 0.3 + 0.1 * noise
            else:
                noise *= 0.2
            parameter.copy_(noise)
    return model


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> EupeModel:
    """A tiny `EupeModel` with known weights, in eval mode."""
    return randomise(EupeModel(tiny_config(family, **overrides)), seed).eval()


def tiny_backbone(family: str, seed: int = 0, **overrides: Any) -> EupeBackbone:
    """A tiny `EupeBackbone` with the weights of `tiny_model`, in eval mode."""
    return randomise(EupeBackbone(tiny_config(family, **overrides)), seed).eval()


def pixels(batch: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    """Normalised images, (batch, 3, height, width)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of either family, in order."""
    return [m for m in model.modules() if type(m).__name__ in ("EupeViTLayer", "EupeConvNextLayer")]


def max_abs(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two tensors, of any dtypes but of one shape; NaN if there is one."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return (a.double() - b.double()).abs().max().item()


def min_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Smallest cosine of two sets of features along the last axis; NaN if there is one."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return torch.cosine_similarity(a.double(), b.double(), dim=-1).min().item()


def golden_model(name: str) -> EupeModel:
    """One of the six with the weights whose outputs are recorded, in eval mode, float32."""
    raw = raw_weights().state_dict(VARIANTS[name].torch_hub_name)
    state, config = to_eupe(raw, variant_config(name), "raw")
    with torch.device("meta"):
        model = EupeModel(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


# ---- an independent ViT in numpy, from the facts about the original alone ----


def reference_angles(height: int, width: int, periods: np.ndarray) -> np.ndarray:
    """Angles (H * W, head_dim) of a grid: those of the H axis, those of the W axis, and both once more."""
    rows = []
    for i in range(height):
        for j in range(width):
            h, w = 2 * (i + 0.5) / height - 1, 2 * (j + 0.5) / width - 1
            rows.append(np.tile(np.concatenate([2 * np.pi * h / periods, 2 * np.pi * w / periods]), 2))
    return np.array(rows)


def reference_rotation(states: np.ndarray, angles: np.ndarray) -> np.ndarray:
    half = states.shape[-1] // 2
    turned = np.concatenate([-states[..., half:], states[..., :half]], axis=-1)
    return states * np.cos(angles) + turned * np.sin(angles)


def reference_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def reference_vit(model: EupeModel, image: torch.Tensor) -> np.ndarray:
    """`last_hidden_state` of one image (1, 3, H, W), in float64, head by head."""
    config = model.config
    w = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    picture, p = image[0].double().numpy(), config.patch_size
    height, width = picture.shape[1] // p, picture.shape[2] // p
    kernel = w["encoder.embeddings.patch_embeddings.weight"]
    patches = [
        (kernel * picture[:, i * p : (i + 1) * p, j * p : (j + 1) * p]).sum(axis=(1, 2, 3))
        for i in range(height)
        for j in range(width)
    ]
    patches = np.array(patches) + w["encoder.embeddings.patch_embeddings.bias"]
    tokens = [w["encoder.embeddings.cls_token"][0], w["encoder.embeddings.register_tokens"][0], patches]
    x, prefix = np.concatenate(tokens), config.num_prefix_tokens
    head_dim = config.hidden_size // config.num_attention_heads
    periods = 100.0 ** (2 * np.arange(head_dim // 4) / (head_dim / 2))
    angles = reference_angles(height, width, periods)
    for i in range(config.num_hidden_layers):
        name = f"encoder.layers.{i}"
        normed = reference_norm(x, w, f"{name}.norm1", 1e-5)
        q, k, v = (normed @ w[f"{name}.attention.{part}_proj.weight"].T for part in "qkv")
        q, v = q + w[f"{name}.attention.q_proj.bias"], v + w[f"{name}.attention.v_proj.bias"]
        heads = []
        for h in range(config.num_attention_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            turned = [np.concatenate([s[:prefix, part], reference_rotation(s[prefix:, part], angles)]) for s in (q, k)]
            scores = turned[0] @ turned[1].T * head_dim**-0.5
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        attended = np.concatenate(heads, axis=-1) @ w[f"{name}.attention.o_proj.weight"].T
        x = x + w[f"{name}.layer_scale1"] * (attended + w[f"{name}.attention.o_proj.bias"])
        hidden = reference_norm(x, w, f"{name}.norm2", 1e-5) @ w[f"{name}.mlp.up_proj.weight"].T
        hidden = hidden + w[f"{name}.mlp.up_proj.bias"]
        hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + w[f"{name}.layer_scale2"] * (
            hidden @ w[f"{name}.mlp.down_proj.weight"].T + w[f"{name}.mlp.down_proj.bias"]
        )
    return reference_norm(x, w, "norm", 1e-5)
