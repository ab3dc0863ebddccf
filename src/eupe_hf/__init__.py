# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE, Meta's Efficient Universal Perception Encoder, at home in Hugging Face transformers.

Importing the package registers its classes with transformers' Auto classes and adds the six short names, so that
`AutoModel.from_pretrained("eupe-s")` works. `eupe_hf.hub.short_names` says how to switch the names off.
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

# the public names of each module
_PUBLIC = {
    "conversion.checkpoints": "CheckpointError",
    "conversion.convert": "convert_checkpoint convert_head",
    "hub.decoders": "load_backbone_weights",
    "models.configuration_eupe": "EupeConfig",
    "models.configuration_eupe_llava": "EupeLlavaConfig",
    "models.configuration_eupe_multitask": "EupeMultiTaskConfig",
    "models.configuration_eupe_pyramid": "EupePyramidConfig",
    "models.image_processing_eupe": "EupeImageProcessor EupeImageProcessorPil",
    "models.modeling_eupe": "EupeBackbone EupeModel EupePreTrainedModel",
    "models.modeling_eupe_depth": "EupeForDepthEstimation",
    "models.modeling_eupe_detection": "EupeForObjectDetection",
    "models.modeling_eupe_image_classification": "EupeForImageClassification",
    "models.modeling_eupe_llava": "EupeLlavaForConditionalGeneration EupeLlavaModel",
    "models.modeling_eupe_multitask": "EupeForMultiTask",
    "models.modeling_eupe_pyramid": "EupePyramidBackbone",
    "models.modeling_eupe_segmentation": "EupeForSegmentation",
    "models.processing_eupe_llava": "EupeLlavaProcessor",
    "variants": "VARIANTS variant_config",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register()
