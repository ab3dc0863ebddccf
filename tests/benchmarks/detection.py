# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""AP50 on drawn shapes after some steps on a frozen encoder: our detection head against transformers' decoders.

    python tests/benchmarks/detection.py --head eupe rt_detr_v2 d_fine [--encoder tiny] [--steps 100 300]

All heads get the same maps, computed once, through the same feature pyramid, the same width and the same batches. The
weights of the encoder are random, with a layer-scale at which they mix what they see. Times are of the head alone.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import DFineConfig, DFineForObjectDetection, RTDetrV2Config, RTDetrV2ForObjectDetection

from eupe_hf import EupeBackbone, EupeConfig, EupeImageProcessorPil, variant_config
from eupe_hf.models.modeling_eupe_detection import EupeDetectionHead, detection_strides
from eupe_hf.models.modeling_eupe_pyramid import EupeFeaturePyramid


sys.path.insert(0, str(Path(__file__).parents[1]))
from drawn_shapes import average_precision, draw_shapes


SIDE, TRAINING, HELD_OUT, BATCH = 128, 512, 96, 8
DECODERS = {
    "rt_detr_v2": (RTDetrV2Config, RTDetrV2ForObjectDetection, {}),
    "d_fine": (DFineConfig, DFineForObjectDetection, {"decoder_n_points": [4, 4, 4]}),
}
LEARNING_RATES = {"eupe": 3e-3, "rt_detr_v2": 5e-4, "d_fine": 5e-4}
# what the post-processing is told: our head also without suppression
VARIANTS = {"eupe": {"": {}, ", no suppression": {"nms_threshold": None}}}


class PyramidBackbone(nn.Module):
    """Stands where a decoder of transformers has its backbone: gives the pyramid of the maps at hand."""

    def __init__(self, pyramid: EupeFeaturePyramid):
        super().__init__()
        self.pyramid = pyramid
        self.maps: list[torch.Tensor] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Feature maps; the pixels are not read."""
        return SimpleNamespace(feature_maps=self.pyramid(self.maps))


def build(head: str, config: EupeConfig) -> tuple[nn.Module, Callable[..., Any]]:
    """A head, and the function that calls it with maps and labels."""
    width, strides = config.detection_hidden_size, detection_strides(config)
    if head == "eupe":
        ours = EupeDetectionHead(config)
        for module in ours.modules():  # as `from_pretrained` initialises a new head
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=config.initializer_range)
        ours.init_head_weights()
        return ours, lambda maps, labels=None: ours(tuple(maps), (), (SIDE, SIDE), labels)
    config_class, model_class, extra = DECODERS[head]
    stand_in = EupeConfig(backbone_type="convnext", hidden_sizes=[width] * 4, depths=[1] * 4, out_indices=[2, 3, 4])
    decoder = model_class(
        config_class(
            backbone_config=stand_in, encoder_in_channels=[width] * 3, feat_strides=strides, num_labels=3,
            encoder_hidden_dim=width, encoder_ffn_dim=4 * width, d_model=width, decoder_in_channels=[width] * 3,
            decoder_ffn_dim=4 * width, decoder_layers=3, num_queries=100, **extra,
        )
    )  # fmt: skip
    pyramid = EupeFeaturePyramid(config.out_channels, config.out_strides, strides, width)
    decoder.model.backbone.model = backbone = PyramidBackbone(pyramid)

    def call(maps: list[torch.Tensor], labels: Any = None) -> Any:
        backbone.maps = maps
        return decoder(torch.zeros(len(maps[0]), 3, SIDE, SIDE), labels=labels)

    return decoder, call


def encoder(name: str) -> EupeBackbone:
    """A frozen encoder with random weights."""
    torch.manual_seed(0)
    if name == "tiny":
        fields = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "layerscale_value": 0.5}
        return EupeBackbone(EupeConfig(num_labels=3, **fields)).eval()
    stages = {"out_indices": [2, 3, 4]} if "convnext" in name else {}
    return EupeBackbone(variant_config(name, num_labels=3, layerscale_value=0.3, **stages)).eval()


def main() -> None:
    """Train, measure and print the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", nargs="+", default=list(LEARNING_RATES), choices=list(LEARNING_RATES))
    parser.add_argument("--encoder", default="tiny", help="tiny, or one of the six names")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 300])
    arguments = parser.parse_args()
    backbone, processor = encoder(arguments.encoder), EupeImageProcessorPil()
    images, labels = draw_shapes(TRAINING + HELD_OUT, SIDE, seed=0)
    with torch.no_grad():
        parts = [backbone(chunk).feature_maps for chunk in images.split(32)]
    maps = [torch.cat(part) for part in zip(*parts, strict=True)]
    for name in arguments.head:
        torch.manual_seed(0)
        head, call = build(name, backbone.config)
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATES[name], weight_decay=1e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
        millions, seconds = sum(p.numel() for p in head.parameters()) / 1e6, 0.0
        head.train()
        for step in range(1, max(arguments.steps) + 1):
            chosen, start = torch.randint(0, TRAINING, (BATCH,)), time.perf_counter()
            optimizer.zero_grad()
            call([m[chosen] for m in maps], [labels[i] for i in chosen]).loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            seconds += time.perf_counter() - start
            if step not in arguments.steps:
                continue
            head.eval()
            with torch.inference_mode():
                start = time.perf_counter()
                outputs = call([m[TRAINING:] for m in maps])
                milliseconds = 1e3 * (time.perf_counter() - start) / HELD_OUT
            head.train()
            for words, options in VARIANTS.get(name, {"": {"nms_threshold": None}}).items():
                found = processor.post_process_object_detection(outputs, threshold=0.0, **options)
                ap50 = average_precision(found, labels[TRAINING:])
                row = f"| {arguments.encoder} | {name}{words} | {millions:.2f} | {step} | {seconds:.0f} "
                print(f"{row}| {milliseconds:.1f} | {ap50:.3f} |", flush=True)


if __name__ == "__main__":
    main()
