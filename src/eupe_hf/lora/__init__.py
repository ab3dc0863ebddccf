# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA with peft: configurations, loading, cards.

Code that knows how an adapter is built belongs here. Importing it needs peft.
"""

from .cards import adapter_card
from .config import TARGETS, EupeLoraConfig, adaptable_layers, load_peft_model, lora_config, new_modules
