# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Every private name of transformers, peft, datasets and huggingface_hub that the package touches.

Any release may remove a private name. tests/hub/test_private_names.py then says which one, and what fails. Files of
`models/` travel without this one and use their names themselves; `hub` uses its names through the functions below.
"""

from typing import Any

from transformers.models.auto.auto_factory import _BaseAutoModelClass


_MODEL = "transformers.modeling_utils:PreTrainedModel"
_CONFIG = "transformers.configuration_utils:PreTrainedConfig"
_IMAGES = "transformers.image_processing_utils:BaseImageProcessor"
_PUSH = "transformers.utils.hub:PushToHubMixin"
_TRAINER = "transformers.trainer:Trainer"
# Owner, for `pkgutil.resolve_name`; names; what the package does with them; what fails without them.
PRIVATE_NAMES = (
    # hub/
    ("transformers.models.auto.auto_factory", "_BaseAutoModelClass", "loads short names past AutoBackbone, "
     "which asks the Hub for them first", "AutoBackbone.from_pretrained('eupe-s')"),
    ("transformers:AutoModel", "_model_mapping", "the table of an Auto class, where classes are entered by name",
     "Auto classes do not know the package"),
    ("transformers:AutoModel._model_mapping", "_model_mapping _reverse_config_mapping", "model type to class name, "
     "and configuration class to model type", "Auto classes do not know the package"),
    # models/
    (_CONFIG, "_attn_implementation", "the attention back end of a model, passed on to models made of it",
     "attn_implementation=... is ignored, by adapters, multi-task models and VLMs too"),
    (_CONFIG, "_name_or_path", "a field of saved configurations that belongs to the folder, not to the encoder",
     "VLMs and pyramids keep the folder of their encoder"),
    ("transformers.backbone_utils:BackboneConfigMixin", "_out_features _out_indices", "fields in which the chosen "
     "stages are saved", "out_features and out_indices of a saved backbone are lost"),
    (_MODEL, "_init_weights _initialize_weights", "initialise heads, which transformers passes over in other packages",
     "new heads start from other values, and task models learn worse"),
    (_MODEL, "_load_pretrained_model", "checks tensors as they are stored, before transformers casts them",
     "integers, float8 numbers and NaN load without a word"),
    (_MODEL, "_no_split_modules _supports_sdpa _supports_flash_attn _supports_flex_attn _supports_attention_backend "
     "_can_compile_fullgraph", "say what the encoders can do", "device_map='auto', attn_implementation=... or "
     "compiled generation refuse EUPE models"),
    (_MODEL, "_tied_weights_keys", "ties the head of a VLM to the embeddings of its language model",
     "VLMs with tied embeddings save and load a second copy"),
    ("transformers.integrations.peft:PeftAdapterMixin", "_hf_peft_config_loaded", "whether a model has an adapter",
     "adapters are saved without the configuration of their model, and VLMs with one are trained"),
    ("transformers.integrations.peft", "_adapter_model_path", "the adapter for which an Auto class loads the base",
     "Auto classes load adapters without the head"),
    ("transformers.utils.hub:cached_files", "_raise_exceptions_for_missing_entries", "asks for a file that may be "
     "missing", "adapters without eupe_config.json do not load"),
    (_PUSH, "_get_files_timestamps", "counts files that save_pretrained has just written as new", "push_to_hub leaves "
     "out source files, card and image processor"),
    (_PUSH, "_upload_modified_files", "completes the card before the upload", "weights are pushed without licence"),
    (_IMAGES, "_set_attributes _validate_preprocess_kwargs _valid_kwargs_names _standardize_kwargs", "check options "
     "when they are given", "wrong options of the image processor pass unnoticed"),
    (_IMAGES, "_prepare_image_like_inputs _preprocess_image_like_inputs _preprocess", "one implementation for both "
     "back ends, with targets", "the image processor computes other values, or ignores targets"),
    ("transformers.processing_utils:ProcessorMixin", "_process_images _merge_kwargs", "pad images of several sizes",
     "the VLM's processor refuses them"),
    ("transformers:LlavaProcessor", "_get_num_multimodal_tokens", "counts image tokens without the images",
     "vLLM and VLM training count wrong"),
    # training/ and data/
    (_TRAINER, "_get_train_sampler _get_eval_sampler _train_batch_size", "batches of one task, or of like length",
     "multi-task and VLM runs draw mixed batches"),
    (_TRAINER, "_prepare_inputs", "puts a batch on the device", "multi-task evaluation"),
    ("transformers.trainer:Trainer.save_model", "_internal_call", "saves without pushing", "every run pushes twice"),
    ("datasets:IterableDataset", "_resolve_features", "finds the columns of a stream", "streamed recipes"),
)  # fmt: skip


def mapping_of(auto_class: Any) -> Any:
    """The mapping of an Auto class of models from configurations to classes."""
    return auto_class._model_mapping


def enter(mapping: Any, model_type: str, config_name: str, entry: Any) -> None:
    """Enter a class by its name, or names by back end: its module is imported when an Auto class needs it."""
    mapping._reverse_config_mapping[config_name] = model_type
    mapping._model_mapping[model_type] = entry


def load_as_auto_model(auto_class: Any, *args: Any, **kwargs: Any) -> Any:
    """Load as any Auto class of models does, whatever `from_pretrained` this one has."""
    load: Any = _BaseAutoModelClass.from_pretrained
    return load.__func__(auto_class, *args, **kwargs)
