# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE, Meta's Efficient Universal Perception Encoder, at home in Hugging Face transformers.

Importing the package registers its classes with transformers' Auto classes and teaches them the six short names, so
that `AutoModel.from_pretrained("eupe-s")` works. See `eupe_hf.hub` for what that hook does and how to switch it off.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .hub.registry import register


if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from .conversion.checkpoints import CheckpointError as CheckpointError
    from .conversion.convert import convert_checkpoint as convert_checkpoint
    from .conversion.convert import convert_head as convert_head
    from .hub.decoders import load_backbone_weights as load_backbone_weights
    from .models.configuration_eupe import EupeConfig as EupeConfig
    from .models.configuration_eupe_llava import EupeLlavaConfig as EupeLlavaConfig
    from .models.configuration_eupe_multitask import EupeMultiTaskConfig as EupeMultiTaskConfig
    from .models.configuration_eupe_pyramid import EupePyramidConfig as EupePyramidConfig
    from .models.image_processing_eupe import EupeImageProcessor as EupeImageProcessor
    from .models.image_processing_eupe import EupeImageProcessorPil as EupeImageProcessorPil
    from .models.modeling_eupe import EupeBackbone as EupeBackbone
    from .models.modeling_eupe import EupeModel as EupeModel
    from .models.modeling_eupe import EupePreTrainedModel as EupePreTrainedModel
    from .models.modeling_eupe_depth import EupeForDepthEstimation as EupeForDepthEstimation
    from .models.modeling_eupe_detection import EupeForObjectDetection as EupeForObjectDetection
    from .models.modeling_eupe_image_classification import EupeForImageClassification as EupeForImageClassification
    from .models.modeling_eupe_llava import EupeLlavaForConditionalGeneration as EupeLlavaForConditionalGeneration
    from .models.modeling_eupe_llava import EupeLlavaModel as EupeLlavaModel
    from .models.modeling_eupe_multitask import EupeForMultiTask as EupeForMultiTask
    from .models.modeling_eupe_pyramid import EupePyramidBackbone as EupePyramidBackbone
    from .models.modeling_eupe_segmentation import EupeForSegmentation as EupeForSegmentation
    from .models.processing_eupe_llava import EupeLlavaProcessor as EupeLlavaProcessor
    from .variants import VARIANTS as VARIANTS
    from .variants import variant_config as variant_config

__version__ = "0.1.0"

_MODULE_OF = {
    "CheckpointError": "conversion.checkpoints",
    "EupeBackbone": "models.modeling_eupe",
    "EupeConfig": "models.configuration_eupe",
    "EupeForDepthEstimation": "models.modeling_eupe_depth",
    "EupeForImageClassification": "models.modeling_eupe_image_classification",
    "EupeForMultiTask": "models.modeling_eupe_multitask",
    "EupeForObjectDetection": "models.modeling_eupe_detection",
    "EupeForSegmentation": "models.modeling_eupe_segmentation",
    "EupeImageProcessor": "models.image_processing_eupe",
    "EupeImageProcessorPil": "models.image_processing_eupe",
    "EupeLlavaConfig": "models.configuration_eupe_llava",
    "EupeLlavaForConditionalGeneration": "models.modeling_eupe_llava",
    "EupeLlavaModel": "models.modeling_eupe_llava",
    "EupeLlavaProcessor": "models.processing_eupe_llava",
    "EupeModel": "models.modeling_eupe",
    "EupeMultiTaskConfig": "models.configuration_eupe_multitask",
    "EupePreTrainedModel": "models.modeling_eupe",
    "EupePyramidBackbone": "models.modeling_eupe_pyramid",
    "EupePyramidConfig": "models.configuration_eupe_pyramid",
    "VARIANTS": "variants",
    "convert_checkpoint": "conversion.convert",
    "convert_head": "conversion.convert",
    "load_backbone_weights": "hub.decoders",
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
