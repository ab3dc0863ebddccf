# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE, Meta's Efficient Universal Perception Encoder, at home in Hugging Face transformers.

Importing the package registers its classes with transformers' Auto classes and teaches them the six short names, so
that `AutoModel.from_pretrained("eupe-s")` works. See `eupe_hf.hub` for what that hook does and how to switch it off.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .hub import register


if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from .checkpoints import CheckpointError as CheckpointError
    from .checkpoints import convert_checkpoint as convert_checkpoint
    from .configuration_eupe import EupeConfig as EupeConfig
    from .configuration_eupe_llava import EupeLlavaConfig as EupeLlavaConfig
    from .configuration_eupe_multitask import EupeMultiTaskConfig as EupeMultiTaskConfig
    from .configuration_eupe_pyramid import EupePyramidConfig as EupePyramidConfig
    from .decoders import load_backbone_weights as load_backbone_weights
    from .heads import convert_head as convert_head
    from .image_processing_eupe import EupeImageProcessor as EupeImageProcessor
    from .image_processing_eupe import EupeImageProcessorPil as EupeImageProcessorPil
    from .modeling_eupe import EupeBackbone as EupeBackbone
    from .modeling_eupe import EupeModel as EupeModel
    from .modeling_eupe import EupePreTrainedModel as EupePreTrainedModel
    from .modeling_eupe_depth import EupeForDepthEstimation as EupeForDepthEstimation
    from .modeling_eupe_detection import EupeForObjectDetection as EupeForObjectDetection
    from .modeling_eupe_image_classification import EupeForImageClassification as EupeForImageClassification
    from .modeling_eupe_llava import EupeLlavaForConditionalGeneration as EupeLlavaForConditionalGeneration
    from .modeling_eupe_llava import EupeLlavaModel as EupeLlavaModel
    from .modeling_eupe_multitask import EupeForMultiTask as EupeForMultiTask
    from .modeling_eupe_pyramid import EupePyramidBackbone as EupePyramidBackbone
    from .modeling_eupe_segmentation import EupeForSegmentation as EupeForSegmentation
    from .processing_eupe_llava import EupeLlavaProcessor as EupeLlavaProcessor
    from .variants import VARIANTS as VARIANTS
    from .variants import variant_config as variant_config

__version__ = "0.1.0"

_MODULE_OF = {
    "CheckpointError": "checkpoints",
    "EupeBackbone": "modeling_eupe",
    "EupeConfig": "configuration_eupe",
    "EupeForDepthEstimation": "modeling_eupe_depth",
    "EupeForImageClassification": "modeling_eupe_image_classification",
    "EupeForMultiTask": "modeling_eupe_multitask",
    "EupeForObjectDetection": "modeling_eupe_detection",
    "EupeForSegmentation": "modeling_eupe_segmentation",
    "EupeImageProcessor": "image_processing_eupe",
    "EupeImageProcessorPil": "image_processing_eupe",
    "EupeLlavaConfig": "configuration_eupe_llava",
    "EupeLlavaForConditionalGeneration": "modeling_eupe_llava",
    "EupeLlavaModel": "modeling_eupe_llava",
    "EupeLlavaProcessor": "processing_eupe_llava",
    "EupeModel": "modeling_eupe",
    "EupeMultiTaskConfig": "configuration_eupe_multitask",
    "EupePreTrainedModel": "modeling_eupe",
    "EupePyramidBackbone": "modeling_eupe_pyramid",
    "EupePyramidConfig": "configuration_eupe_pyramid",
    "VARIANTS": "variants",
    "convert_checkpoint": "checkpoints",
    "convert_head": "heads",
    "load_backbone_weights": "decoders",
    "variant_config": "variants",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register()
