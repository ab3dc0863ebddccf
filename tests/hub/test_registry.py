# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The table of registered classes: what each Auto class gives, and what is imported for it."""

import json
import subprocess
import sys

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import eupe_hf
from eupe_hf.hub import private_names, registry


@pytest.mark.parametrize(("model_type", "auto_name", "names"), registry._CLASSES)
def test_auto_class_gives_the_classes_of_the_table(model_type: str, auto_name: str, names: str | dict) -> None:
    config_class = CONFIG_MAPPING[model_type]
    assert (config_class.__name__, config_class.model_type) == (registry._CONFIGURATIONS[model_type], model_type)
    mapping = registry._MAPPINGS.get(auto_name)
    mapping = private_names.mapping_of(getattr(transformers, auto_name)) if mapping is None else mapping
    assert config_class in mapping
    if isinstance(names, dict):
        assert mapping[config_class] == {backend: getattr(eupe_hf, name) for backend, name in names.items()}
    else:
        assert mapping[config_class] is getattr(eupe_hf, names)


def test_each_public_model_and_processor_is_registered() -> None:
    entries = [entry for _, _, entry in registry._CLASSES]
    registered = {name for entry in entries for name in (entry.values() if isinstance(entry, dict) else [entry])}
    registered |= set(registry._CONFIGURATIONS.values())
    assert registered == {name for name in eupe_hf.__all__ if name.startswith("Eupe")} - {"EupePreTrainedModel"}


LAZY = """
import json, sys
import eupe_hf
from transformers import AutoBackbone, AutoConfig, AutoModel, ViTConfig

def imported():
    return sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("eupe_hf.models.modeling"))

AutoModel.from_config(ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8))
print(json.dumps(imported()))
config = AutoConfig.for_model("eupe", hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
print(json.dumps(imported()))
print(json.dumps([type(cls.from_config(config)).__name__ for cls in (AutoModel, AutoBackbone)]))
print(json.dumps([name for name in imported() if name.endswith(("_llava", "_detection"))]))
"""


def test_models_are_imported_when_they_are_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], check=True, capture_output=True, text=True, timeout=120)
    before, with_config, classes, others = map(json.loads, done.stdout.splitlines())
    assert before == with_config == others == []
    assert classes == ["EupeModel", "EupeBackbone"]
