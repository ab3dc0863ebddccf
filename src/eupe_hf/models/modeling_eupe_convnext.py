# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The EUPE ConvNeXt: image to the map of the last stage, without the final norm (`modeling_eupe.py` applies it)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_eupe import EupeConfig
from .modeling_eupe_encoder import EupeEncoder, drop_path


class EupeConvNextLayer(GradientCheckpointingLayer):
    """One block: depthwise 7x7 convolution, norm over channels, two linear layers, learned scale, residual.

    Upstream calls them `dwconv`, `pwconv1`, `pwconv2`. The fused layer norm on channels-last data sums in float32, so
    half precision does not overflow.
    """

    def __init__(self, config: EupeConfig, channels: int):
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.layer_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, hidden_states: torch.Tensor, drop_path_rate: float = 0.0) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W), channels-last in memory."""
        branch = self.depthwise_conv(hidden_states).permute(0, 2, 3, 1)  # (B, H, W, C), no copy in channels-last
        grid = branch.shape[1:3]
        branch = self.layer_norm(branch).flatten(1, 2)  # (B, H * W, C): 8-bit layers of bitsandbytes take three axes
        branch = self.pointwise_conv2(self.activation_fn(self.pointwise_conv1(branch))).unflatten(1, grid)
        branch = drop_path(branch, drop_path_rate)
        return torch.addcmul(hidden_states.permute(0, 2, 3, 1), branch, self.gamma).permute(0, 3, 1, 2)


class EupeConvNextStem(nn.Module):
    """Patches of 4x4 pixels, then the norm over channels."""

    def __init__(self, config: EupeConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.num_channels, config.hidden_sizes[0], kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(config.hidden_sizes[0], eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, num_channels, H, W) to (B, C, H / 4, W / 4)."""
        return self.norm(self.conv(pixel_values).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EupeConvNextDownsample(nn.Module):
    """Norm over channels, then a 2x2 convolution with stride 2."""

    def __init__(self, config: EupeConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=config.layer_norm_eps)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H / 2, W / 2)."""
        return self.conv(self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class EupeConvNextStage(nn.Module):
    """Downsampling (none in the first stage, which follows the stem) and the blocks of one resolution."""

    def __init__(self, config: EupeConfig, index: int):
        super().__init__()
        channels = config.hidden_sizes[index]
        self.downsample = (
            EupeConvNextDownsample(config, config.hidden_sizes[index - 1], channels) if index > 0 else nn.Identity()
        )
        self.layers = nn.ModuleList([EupeConvNextLayer(config, channels) for _ in range(config.depths[index])])

    def forward(self, hidden_states: torch.Tensor, drop_path_rates: Sequence[float]) -> torch.Tensor:
        """Map of the stage before to the map of this stage; one rate per block."""
        hidden_states = self.downsample(hidden_states)
        for layer, rate in zip(self.layers, drop_path_rates, strict=True):
            hidden_states = layer(hidden_states, drop_path_rate=rate)
        return hidden_states


class EupeConvNextEncoder(EupeEncoder):
    """Stem and stages."""

    _no_split_modules = ["EupeConvNextLayer"]

    def __init__(self, config: EupeConfig):
        super().__init__(config)
        self.stem = EupeConvNextStem(config)
        self.stages = nn.ModuleList([EupeConvNextStage(config, i) for i in range(len(config.depths))])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The convolution of the stem."""
        return self.stem.conv

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EupeConvNextLayer):
            init.constant_(module.gamma, self.config.layerscale_value)

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        num_layers: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode images (B, num_channels, H, W), normalised, in the dtype of the weights, without the final norm.

        As `EupeViTEncoder.forward`, but `num_layers` counts stages, options of attention are ignored, and states are
        maps: (B, C, H / 32, W / 32) of the last stage, and on request those of the stem and of each stage.
        """
        selected = self.config.selected_hidden_states(output_hidden_states)
        # In channels-last memory norm and linear layers need no copies, and the depthwise convolution is faster.
        hidden_states = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        states = [hidden_states if 0 in selected else None]
        rates = self._drop_path_rates()
        stages = list(self.stages)[:num_layers]
        for i, stage in enumerate(stages, start=1):
            rates_here, rates = rates[: len(stage.layers)], rates[len(stage.layers) :]
            hidden_states = stage(hidden_states, rates_here)
            states.append(hidden_states if i in selected else None)
        states += [None] * (len(self.stages) - len(stages))
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(states) if selected else None)
