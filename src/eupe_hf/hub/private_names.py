from typing import Any
from transformers.models.auto.auto_factory import _BaseAutoModelClass
def mapping_of(auto_class: Any) -> Any:
    return auto_class._model_mapping
def enter(mapping, model_type, config_name, name):
    mapping._reverse_config_mapping[config_name] = model_type
    mapping._model_mapping[model_type] = name
def load_as_auto_model(auto_class: Any, *args: Any, **kwargs: Any) -> Any:
    return _BaseAutoModelClass.from_pretrained.__func__(auto_class, *args, **kwargs)
