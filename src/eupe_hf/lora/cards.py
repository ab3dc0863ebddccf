# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Cards of adapters: what was adapted and how, the licence of the weights below, and how to load it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME as PEFT_CONFIG_NAME

from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.models.modeling_eupe import EupeBackbone, EupeModel
from eupe_hf.models.modeling_eupe_adapter import ADAPTER_CONFIG_NAME
from eupe_hf.models.modeling_eupe_cards import LICENSE_TEXT, as_text, hub_id, in_code
from eupe_hf.models.modeling_eupe_llava import EupeLlavaForConditionalGeneration
from eupe_hf.models.modeling_eupe_multitask import EupeForMultiTask
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.variants import VARIANTS


_CARD = "README.md"
_SEVERAL = "# Adapters for EUPE\n\nThe folders beside this card hold one adapter each, with a card of its own.\n"
# The classes that an adapter may be for, by the name that is saved with it.
_ENCODERS: tuple[Any, ...] = (EupeModel, EupeBackbone, EupeForMultiTask, *TASK_MODELS.values())
MODELS = {known.__name__: known for known in (*_ENCODERS, EupeLlavaForConditionalGeneration)}
_BUILD = """Build the {architecture} that it was trained on, then:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "PATH")
```"""
_LOAD = """```python
import eupe_hf  # pip install 'eupe-hf[train]'
{imports}

processor = AutoImageProcessor.from_pretrained({base})
model = {name}.from_pretrained("PATH")
```

Merged into the base, for export or to run without peft:

```python
from eupe_hf.lora import load_peft_model

model = load_peft_model("PATH").merge_and_unload()
model.save_pretrained("MERGED")
```"""


def adapter_card(
    folder: str | os.PathLike,
    dataset: str | Sequence[str] | None = None,
    metrics: Sequence[EvalResult] = (),
    recipe: str | None = None,
    name: str | None = None,
) -> ModelCard:
    """A card for a saved adapter: `adapter_card(folder, ...).save(f"{folder}/README.md")`.

    Args:
        folder: Folder of the adapter, with `adapter_config.json` and, if there is one, `eupe_config.json`.
        dataset: The training data: ids of data sets on the Hub, which also go into the metadata, or words.
        metrics: Results of an evaluation.
        recipe: How the adapter was trained, in markdown.
        name: Title and name of the model; by default the name of the folder.
    """
    folder = Path(folder)
    lora, file = _read(folder / PEFT_CONFIG_NAME), folder / ADAPTER_CONFIG_NAME
    architecture = ((_read(file) if file.is_file() else {}).get("architectures") or ["EUPE model"])[0]
    name = name or folder.resolve().name
    sources = [dataset] if isinstance(dataset, str) else list(dict.fromkeys(dataset or ()))
    data = ModelCardData(
        library_name="peft",
        pipeline_tag=getattr(MODELS.get(architecture), "_pipeline_tag", None),
        datasets=[known for known in sources if _is_hub_id(known)] or None,
        model_name=name if metrics else None,
        eval_results=list(metrics) or None,
    )
    base = lora.get("base_model_name_or_path") or ""
    _complete(data, base)
    known = hub_id(base)
    linked = f"[{known}](https://huggingface.co/{known})" if known else "a base model of its own"
    text = [f"# {as_text(name)}", f"A LoRA adapter for {as_text(architecture)} on {linked}.", _details(lora)]
    if sources:
        text += ["## Data", ", ".join(map(_data_link, sources))]
    if recipe is not None:
        text += ["## Recipe", recipe.strip()]
    if metrics:
        cells = [(m.metric_name or m.metric_type, m.dataset_name, m.metric_value) for m in metrics]
        rows = [f"| {' | '.join(map(as_text, row))} |" for row in cells]
        text += ["## Results", "\n".join(["| metric | data | value |", "|---|---|---|", *rows])]
    text += ["## How to load it", _loading(architecture, base), "## Licence"]
    text += [f"{LICENSE_TEXT} This adapter is a derivative."]
    # peft adds this line wherever it is missing
    text += ["### Framework versions", f"- PEFT {as_text(lora.get('peft_version'))}"]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n")


def complete_cards(folder: str | os.PathLike) -> None:
    """Replace peft's unfilled template in the folder of an adapter; a card that you wrote only gets licence and base.

    Where adapters have names, peft also writes one card above their folders.
    """
    folder = Path(folder)
    path, above = folder / _CARD, folder.parent / _CARD
    base = _read(folder / PEFT_CONFIG_NAME).get("base_model_name_or_path") or ""
    if not path.is_file() or _is_template(card := ModelCard.load(path)):
        card = adapter_card(folder)
    _complete(card.data, base)
    card.save(path)
    if above.is_file() and _is_template(card := ModelCard.load(above)):
        _complete(card.data, base)
        card.text = _SEVERAL
        card.save(above)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _is_template(card: ModelCard) -> bool:
    return card.data.library_name == "peft" and "[More Information Needed]" in card.text


def _complete(data: ModelCardData, base: str) -> None:
    """Add licence, tags, and the base by its id on the Hub; a local folder is not for publishing."""
    for key, value in WEIGHTS_LICENSE.items():
        setattr(data, key, value)
    data.base_model = hub_id(base)
    tags = {tag for tag in data.tags or [] if not tag.startswith("base_model:")} | {"eupe", "lora"}
    data.tags = sorted(tags | ({f"base_model:adapter:{data.base_model}"} if data.base_model else set()))


def _is_hub_id(name: str) -> bool:
    return hub_id(name) == name


def _data_link(name: str) -> str:
    return f"[{name}](https://huggingface.co/datasets/{name})" if _is_hub_id(name) else as_text(name)


def _details(lora: dict) -> str:
    targets = lora["target_modules"]
    if isinstance(targets, str):  # the pattern that `lora_config` makes ends with the names
        targets = targets.rpartition("(?:")[2].rstrip(")").split("|")
    kind = ", ".join(("DoRA",) * lora["use_dora"] + ("rank-stabilised",) * lora["use_rslora"]) or "LoRA"
    rank, alpha, dropout = (as_text(lora[key]) for key in ("r", "lora_alpha", "lora_dropout"))
    return (
        f"- Kind: {kind}, rank {rank}, alpha {alpha}, dropout {dropout}\n"
        f"- Adapted layers: {as_text(', '.join(sorted(targets)))}\n"
        f"- Trained in full: {as_text(', '.join(lora['modules_to_save'] or ['nothing']))}"
    )


def _loading(architecture: str, base: str) -> str:
    model_class = MODELS.get(architecture)
    if model_class in (None, EupeLlavaForConditionalGeneration):
        return _BUILD.format(architecture=as_text(architecture))
    if model_class in (EupeForMultiTask, EupeBackbone):  # their Auto classes load something else
        name = architecture
        imports = f"from transformers import AutoImageProcessor\nfrom eupe_hf import {name}"
    else:
        name = model_class._task_auto_class or "AutoModel"
        imports = f"from transformers import AutoImageProcessor, {name}"
    shown = in_code(base if base in VARIANTS or _is_hub_id(base) else "BASE")
    return _LOAD.format(imports=imports, name=name, base=shown)
