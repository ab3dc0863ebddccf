# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The package's classes, entered with transformers' Auto classes."""

import os
import sys
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.utils import logging

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.configuration_eupe_llava import EupeLlavaConfig
from eupe_hf.models.configuration_eupe_multitask import EupeMultiTaskConfig
from eupe_hf.models.configuration_eupe_pyramid import EupePyramidConfig
from eupe_hf.models.image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil
from eupe_hf.models.modeling_eupe import EupeBackbone, EupeModel
from eupe_hf.models.modeling_eupe_depth import EupeForDepthEstimation
from eupe_hf.models.modeling_eupe_detection import EupeForObjectDetection
from eupe_hf.models.modeling_eupe_image_classification import EupeForImageClassification
from eupe_hf.models.modeling_eupe_multitask import EupeForMultiTask
from eupe_hf.models.modeling_eupe_pyramid import EupePyramidBackbone
from eupe_hf.models.modeling_eupe_saving import HUB_IDS
from eupe_hf.models.modeling_eupe_segmentation import EupeForSegmentation
from eupe_hf.models.processing_eupe_llava import EupeLlavaProcessor
from eupe_hf.variants import VARIANTS

from .short_names import DISABLE_VARIABLE, install_short_names


logger = logging.get_logger(__name__)


def register() -> None:
    """Enter the classes with transformers' Auto classes and install the hook for short names; may be called again."""
    AutoConfig.register(EupeConfig.model_type, EupeConfig, exist_ok=True)
    AutoModel.register(EupeConfig, EupeModel, exist_ok=True)
    AutoBackbone.register(EupeConfig, EupeBackbone, exist_ok=True)
    AutoConfig.register(EupePyramidConfig.model_type, EupePyramidConfig, exist_ok=True)
    AutoBackbone.register(EupePyramidConfig, EupePyramidBackbone, exist_ok=True)
    AutoModelForImageClassification.register(EupeConfig, EupeForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(EupeConfig, EupeForSegmentation, exist_ok=True)
    AutoModelForDepthEstimation.register(EupeConfig, EupeForDepthEstimation, exist_ok=True)
    AutoConfig.register(EupeMultiTaskConfig.model_type, EupeMultiTaskConfig, exist_ok=True)
    AutoModel.register(EupeMultiTaskConfig, EupeForMultiTask, exist_ok=True)
    AutoModelForObjectDetection.register(EupeConfig, EupeForObjectDetection, exist_ok=True)
    processors = {"torchvision": EupeImageProcessor, "pil": EupeImageProcessorPil}
    for config_class in (EupeConfig, EupeMultiTaskConfig, EupeLlavaConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    AutoConfig.register(EupeLlavaConfig.model_type, EupeLlavaConfig, exist_ok=True)
    AutoProcessor.register(EupeLlavaConfig, EupeLlavaProcessor, exist_ok=True)
    _register_lazily(AutoModel, EupeLlavaConfig, "EupeLlavaModel")
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        _register_lazily(auto_class, EupeLlavaConfig, "EupeLlavaForConditionalGeneration")
    HUB_IDS.update({name: variant.repo_id for variant in VARIANTS.values() for name in variant.synonyms})
    if os.environ.get(DISABLE_VARIABLE, "0") in ("", "0"):
        install_short_names()


def _register_lazily(auto_class: Any, config_class: Any, name: str) -> None:
    # `register` wants the class, whose module costs more to import than all others: LLaVA's and generation's come with
    # it. In the tables of transformers' own classes a name is enough, with the module to take it from.
    mapping, model_type = auto_class._model_mapping, config_class.model_type
    mapping._reverse_config_mapping[config_class.__name__] = model_type
    mapping._model_mapping[model_type] = name
    mapping._modules[model_type] = sys.modules["eupe_hf"]
