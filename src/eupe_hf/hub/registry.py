# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The package's classes, entered with transformers' Auto classes by name and imported when one is asked for."""

import os
import sys

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from eupe_hf.models.sharing_eupe import HUB_IDS
from eupe_hf.variants import VARIANTS

from .private_names import enter, mapping_of
from .short_names import DISABLE_VARIABLE, install_short_names


# of the Auto classes that do not have theirs as an attribute
_MAPPINGS = {"AutoImageProcessor": IMAGE_PROCESSOR_MAPPING, "AutoProcessor": PROCESSOR_MAPPING}
_IMAGE_PROCESSORS = {"torchvision": "EupeImageProcessor", "pil": "EupeImageProcessorPil"}
_CONFIGURATIONS = {
    "eupe": "EupeConfig",
    "eupe_pyramid": "EupePyramidConfig",
    "eupe_multitask": "EupeMultiTaskConfig",
    "eupe_llava": "EupeLlavaConfig",
}
# What an Auto class makes of a model type.
_CLASSES: tuple[tuple[str, str, str | dict[str, str]], ...] = (
    ("eupe", "AutoModel", "EupeModel"),
    ("eupe", "AutoBackbone", "EupeBackbone"),
    ("eupe", "AutoModelForImageClassification", "EupeForImageClassification"),
    ("eupe", "AutoModelForSemanticSegmentation", "EupeForSegmentation"),
    ("eupe", "AutoModelForDepthEstimation", "EupeForDepthEstimation"),
    ("eupe", "AutoModelForObjectDetection", "EupeForObjectDetection"),
    ("eupe", "AutoImageProcessor", _IMAGE_PROCESSORS),
    ("eupe_pyramid", "AutoBackbone", "EupePyramidBackbone"),
    ("eupe_multitask", "AutoModel", "EupeForMultiTask"),
    ("eupe_multitask", "AutoImageProcessor", _IMAGE_PROCESSORS),
    ("eupe_llava", "AutoModel", "EupeLlavaModel"),
    ("eupe_llava", "AutoModelForImageTextToText", "EupeLlavaForConditionalGeneration"),
    ("eupe_llava", "AutoModelForMultimodalLM", "EupeLlavaForConditionalGeneration"),
    ("eupe_llava", "AutoImageProcessor", _IMAGE_PROCESSORS),
    ("eupe_llava", "AutoProcessor", "EupeLlavaProcessor"),
)


def register() -> None:
    """Enter the classes with transformers' Auto classes and install the hook for short names; may be called again."""
    CONFIG_MAPPING_NAMES.update(_CONFIGURATIONS)
    for model_type in _CONFIGURATIONS:
        # transformers imports the module of a model type when it needs a class of it. This one is imported already.
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["eupe_hf"]
    for model_type, auto_name, name in _CLASSES:
        is_model = auto_name not in _MAPPINGS
        mapping = mapping_of(getattr(transformers, auto_name)) if is_model else _MAPPINGS[auto_name]
        enter(mapping, model_type, _CONFIGURATIONS[model_type], name)
    HUB_IDS.update({name: variant.repo_id for variant in VARIANTS.values() for name in variant.synonyms})
    if os.environ.get(DISABLE_VARIABLE, "0") in ("", "0"):
        install_short_names()
