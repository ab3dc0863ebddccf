"""What `../shared/conformance` needs to know to run transformers' own common tests on this package's classes."""

import dataclasses
import sys
import types
from typing import Any

import torch
from harness import names, pipelines
from harness.subject import ImageProcessorSpec, ProcessorSpec, Subject, VisionFamily, VlmFamily
from harness.vision import VisionModelTests
from tests.pipelines._local import LocalPipelineTests
from transformers import AutoModelForObjectDetection, LlamaConfig

from eupe_hf import (
    EupeBackbone,
    EupeConfig,
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForObjectDetection,
    EupeForSegmentation,
    EupeImageProcessorPil,
    EupeLlavaConfig,
    EupeLlavaForConditionalGeneration,
    EupeLlavaModel,
    EupeLlavaProcessor,
    EupeModel,
    EupeMultiTaskConfig,
)


HEADS = {
    "image-classification": EupeForImageClassification,
    "semantic-segmentation": EupeForSegmentation,
    "depth-estimation": EupeForDepthEstimation,
    "object-detection": EupeForObjectDetection,
}


# ---- object detection, which the harness does not know: labels, pipeline and Auto class ----

names._TASK_DICTS["object-detection"] = ()
pipelines.PIPELINE_TASK["object-detection"] = "object-detection"
_prepare, _know_auto_classes = VisionModelTests._prepare_for_class, VisionModelTests.test_auto_classes_know_the_subject


def _prepare_for_class(self: Any, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
    prepared = _prepare(self, inputs, model_class, return_labels=return_labels)
    if return_labels and model_class is EupeForObjectDetection:
        boxes = torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.6, 0.3, 0.4, 0.5]])
        labels = {"class_labels": torch.tensor([1, 0]), "boxes": boxes}
        prepared["labels"] = [dict(labels) for _ in prepared["pixel_values"]]
    return prepared


def _know_all_auto_classes(self: Any) -> None:
    heads = dict(self.family.heads)
    head = heads.pop("object-detection", None)  # this file is loaded twice, and wraps twice
    if head is not None:
        self.assertIs(type(AutoModelForObjectDetection.from_config(self.model_tester.get_config())), head)
    self.family = dataclasses.replace(self.family, heads=heads)
    _know_auto_classes(self)


class ObjectDetectionPipelineTests(LocalPipelineTests):
    task = "object-detection"
    registration_counts = False  # the pipeline looks in transformers' own list of names

    def check(self, pipe: Any, image: Any, out: list[dict]) -> None:
        for found in out:
            self.assertEqual(set(found), {"score", "label", "box"})
            self.assertIn(found["label"], pipe.model.config.id2label.values())
            self.assertLessEqual(found["box"]["xmax"], image.width)
            self.assertLessEqual(found["box"]["ymax"], image.height)


_module = types.ModuleType("tests.pipelines.test_pipelines_object_detection")
_module.ObjectDetectionPipelineTests = ObjectDetectionPipelineTests
sys.modules[_module.__name__] = _module
pipelines.VisionPipelineTests.test_pipeline_object_detection = lambda self: self.run_task_tests("object-detection")
pipelines.VisionPipelineTests.test_pipeline_object_detection_fp16 = lambda self: self.run_task_tests(
    "object-detection", dtype="float16"
)
VisionModelTests._prepare_for_class = _prepare_for_class
VisionModelTests.test_auto_classes_know_the_subject = _know_all_auto_classes


def _image_processor() -> EupeImageProcessorPil:
    return EupeImageProcessorPil(size={"height": 32, "width": 32})


def _vit_config() -> EupeConfig:
    return EupeConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_register_tokens=2,
        out_indices=[1, 2],
        detection_hidden_size=32,
    )


def _convnext_config() -> EupeConfig:
    return EupeConfig(
        backbone_type="convnext",
        image_size=32,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 2, 1],
        out_indices=[1, 2, 3, 4],
        detection_hidden_size=32,
    )


vit = VisionFamily(
    name="vit",
    config_class=EupeConfig,
    model_class=EupeModel,
    backbone_class=EupeBackbone,
    heads=HEADS,
    tiny_config=_vit_config,
    config_kwargs={"backbone_type": "vit"},
    num_attention_heads=4,
    seq_length=64 + 1 + 2,
    # the mask token takes part only where patches are masked
    all_params_have_gradient=False,
    image_processor=_image_processor,
)

convnext = VisionFamily(
    name="convnext",
    config_class=EupeConfig,
    model_class=EupeModel,
    backbone_class=EupeBackbone,
    heads=HEADS,
    tiny_config=_convnext_config,
    config_kwargs={"backbone_type": "convnext"},
    config_common_properties=["num_channels", "hidden_sizes", "hidden_size"],
    patch_size=32,
    num_attention_heads=None,
    hidden_size=None,
    num_hidden_states=5,
    has_attentions=False,
    hidden_layout="maps",
    map_sizes=[(8, 8), (8, 8), (4, 4), (2, 2), (1, 1)],
    image_processor=_image_processor,
)

MULTI_TASK_HEADS = {
    "scene": {"task": "classification", "num_labels": 5},
    "parts": {"task": "segmentation", "num_labels": 5, "out_indices": [1, 2]},
    "depth": {"task": "depth"},
    "boxes": {"task": "detection", "num_labels": 5, "detection_hidden_size": 32},
}


_NOT_FEATURES = "a multi-task model gives predictions by the names of its heads; features come from EupeModel"
_NOT_A_TENSOR = (
    "reads the first output as a tensor, here it is a dictionary; tests/test_modeling_eupe_multitask.py has it"
)
MULTI_TASK_SKIPS = {
    "test_correct_missing_keys": "an encoder's configuration names no heads, so none are missing when it is loaded",
    "test_determinism": _NOT_A_TENSOR,
    "test_retain_grad_hidden_states_attentions": _NOT_A_TENSOR,
    "test_pipeline_image_feature_extraction": _NOT_FEATURES,
    "test_pipeline_image_feature_extraction_fp16": _NOT_FEATURES,
}


def _vit_multi_task_config() -> EupeMultiTaskConfig:
    return EupeMultiTaskConfig(encoder_config=_vit_config(), heads=MULTI_TASK_HEADS)


def _convnext_multi_task_config() -> EupeMultiTaskConfig:
    return EupeMultiTaskConfig(encoder_config=_convnext_config(), heads=MULTI_TASK_HEADS)


vit_multi_task = dataclasses.replace(
    vit,
    name="vit_multi_task",
    config_class=EupeMultiTaskConfig,
    model_class=EupeForMultiTask,
    backbone_class=None,
    heads={},
    tiny_config=_vit_multi_task_config,
    config_kwargs={},
    config_common_properties=["encoder_config", "heads"],
    skips=MULTI_TASK_SKIPS,
)
convnext_multi_task = dataclasses.replace(
    convnext,
    name="convnext_multi_task",
    config_class=EupeMultiTaskConfig,
    model_class=EupeForMultiTask,
    backbone_class=None,
    heads={},
    tiny_config=_convnext_multi_task_config,
    config_kwargs={},
    config_common_properties=["encoder_config", "heads"],
    skips=MULTI_TASK_SKIPS,
)

image_processor = ImageProcessorSpec(
    name="eupe",
    classes={"pil": EupeImageProcessorPil},
    kwargs={
        "size": {"height": 18, "width": 18},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.4, 0.3],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    },
)


def _llava_config(vision: EupeConfig) -> EupeLlavaConfig:
    text = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return EupeLlavaConfig(vision_config=vision, text_config=text, image_token_index=3)


def _vit_llava_config() -> EupeLlavaConfig:
    tower = {"image_size": 8, "patch_size": 4, "hidden_size": 32, "intermediate_size": 37}
    return _llava_config(EupeConfig(**tower, num_hidden_layers=2, num_attention_heads=4, num_register_tokens=2))


def _convnext_llava_config() -> EupeLlavaConfig:
    return _llava_config(
        EupeConfig(backbone_type="convnext", image_size=16, hidden_sizes=[16, 32], depths=[1, 1])  # stride 8
    )


vit_llava = VlmFamily(
    name="vit_llava",
    config_class=EupeLlavaConfig,
    model_class=EupeLlavaModel,
    generation_class=EupeLlavaForConditionalGeneration,
    tiny_config=_vit_llava_config,
    config_common_properties=["image_token_index", "vision_feature_layer", "scale_factor"],
    # the mask token takes part only where patches are masked, which a VLM never does
    all_params_have_gradient=False,
)
convnext_llava = dataclasses.replace(
    vit_llava,
    name="convnext_llava",
    tiny_config=_convnext_llava_config,
    image_size=16,
    all_params_have_gradient=True,
    skips={"test_get_image_features_attentions": "a ConvNeXt has no attention"},
)

processor = ProcessorSpec(
    name="eupe_llava",
    processor_class=EupeLlavaProcessor,
    image_processor=lambda: EupeImageProcessorPil(size={"height": 18, "width": 18}),
    kwargs={"patch_size": 6},
)

SUBJECT = Subject(
    name="eupe",
    vision=[vit, convnext, vit_multi_task, convnext_multi_task],
    vlm=[vit_llava, convnext_llava],
    image_processors=[image_processor],
    processors=[processor],
)
