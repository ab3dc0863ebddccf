"""What `../shared/conformance` needs to know to run transformers' own common tests on this package's classes."""

from dataclasses import replace

from harness.subject import ImageProcessorSpec, Subject, VisionFamily

from eupe_hf import (
    EupeBackbone,
    EupeConfig,
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeImageProcessorPil,
    EupeModel,
    EupeMultiTaskConfig,
)


HEADS = {
    "image-classification": EupeForImageClassification,
    "semantic-segmentation": EupeForSegmentation,
    "depth-estimation": EupeForDepthEstimation,
}


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
    )


def _convnext_config() -> EupeConfig:
    return EupeConfig(
        backbone_type="convnext",
        image_size=32,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 2, 1],
        out_indices=[1, 2, 3, 4],
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


vit_multi_task = replace(
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
convnext_multi_task = replace(
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

SUBJECT = Subject(
    name="eupe", vision=[vit, convnext, vit_multi_task, convnext_multi_task], image_processors=[image_processor]
)
