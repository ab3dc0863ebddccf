# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the encoders of both families share: flags for transformers, first weights, and stochastic depth."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_eupe import EupeConfig


class EupeEncoder(PreTrainedModel):
    """Embeddings and blocks without the final norm, which `EupeModel` and `EupeBackbone` add."""

    config_class = EupeConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # A ConvNeXt has no attention, but takes any `attn_implementation` that the user asks for.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    def _is_random(self) -> bool:
        # Random augmentation belongs to training: a frozen tower inside a model that trains must not have it.
        return self.training and any(parameter.requires_grad for parameter in self.parameters())

    def _drop_path_rates(self) -> list[float]:
        """Rates of all blocks in this forward pass: all 0 in eval mode, and for a frozen encoder."""
        count, rate = sum(self.config.depths), self.config.drop_path_rate
        if not rate or not self._is_random():
            return [0.0] * count
        return [rate * i / max(1, count - 1) for i in range(count)]


def drop_path(branch: torch.Tensor, rate: float) -> torch.Tensor:
    """Stochastic depth (arXiv 1603.09382) on a residual branch (B, ...).

    Drops a sample with probability `rate`, in [0, 1), and divides the others by 1 - `rate`, which keeps the mean.
    """
    if not rate:
        return branch
    kept = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - rate)
    return branch * (kept / (1 - rate))
