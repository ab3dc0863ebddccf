# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Cards of adapters: what was adapted and how, the licence of the weights below, and how to load it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME as PEFT_CONFIG_NAME

from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.models.modeling_eupe import EupeModel, EupePreTrainedModel
from eupe_hf.models.modeling_eupe_adapter import ADAPTER_CONFIG_NAME
from eupe_hf.models.modeling_eupe_multitask import TASK_MODELS, EupeForMultiTask
from eupe_hf.models.modeling_eupe_cards import LICENSE_TEXT, hub_id
from eupe_hf.variants import VARIANTS


_CARD = "README.md"


_MODELS: tuple[type[EupePreTrainedModel], ...] = (EupeModel, EupeForMultiTask, *TASK_MODELS.values())


_CLASSES = {known.__name__: known for known in _MODELS}


_SEVERAL = """# Adapters for EUPE

The folders beside this card hold one adapter each, with a card of its own.
"""


_LICENSE = f"""## Licence

{LICENSE_TEXT} This adapter is a derivative.
"""


def adapter_card(
    folder: str | os.PathLike,
    dataset: str | Sequence[str] | None = None,
    metrics: Sequence[EvalResult] = (),
    recipe: str | None = None,
    name: str | None = None,
) -> ModelCard:
    """A card for an adapter that was saved: what, on what, with which rank and targets, how to load it, licence.

    Args:
        folder: Folder of the adapter, with its `adapter_config.json`, and `eupe_config.json` where there is one.
        dataset: What it was trained on: the id of a data set on the Hub, which also goes into the metadata, or words;
            or several of these.
        metrics: Results of an evaluation.
        recipe: How it was trained, in markdown.
        name: Title and name of the model; by default the name of the folder.

    Returns:
        The card: `adapter_card(folder, ...).save(f"{folder}/README.md")`.
    """
    folder = Path(folder)
    lora = json.loads((folder / PEFT_CONFIG_NAME).read_text(encoding="utf-8"))
    file = folder / ADAPTER_CONFIG_NAME
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    architecture = (config.get("architectures") or ["EUPE model"])[0]
    name = name or folder.resolve().name
    sources = [dataset] if isinstance(dataset, str) else list(dict.fromkeys(dataset or ()))
    data = ModelCardData(
        library_name="peft",
        datasets=[known for known in sources if _is_hub_id(known)] or None,
        model_name=name if metrics else None,
        eval_results=list(metrics) or None,
    )
    model_class = _CLASSES.get(architecture)
    if model_class is not None:
        data.pipeline_tag = model_class._pipeline_tag
    base = lora.get("base_model_name_or_path") or ""
    _complete(data, base)
    text = [f"# {name}", "", f"A LoRA adapter for {architecture} on {_linked(base)}.", "", *_details(lora), ""]
    if sources:
        links = [f"[{name}](https://huggingface.co/datasets/{name})" if _is_hub_id(name) else name for name in sources]
        text += ["## Data", "", ", ".join(links), ""]
    if recipe is not None:
        text += ["## Recipe", "", recipe.strip(), ""]
    if metrics:
        text += ["## Results", "", "| metric | data | value |", "|---|---|---|"]
        text += [f"| {m.metric_name or m.metric_type} | {m.dataset_name} | {m.metric_value} |" for m in metrics] + [""]
    text += ["## How to load it", "", _loading(architecture, base), _LICENSE]
    # peft adds this line wherever it is missing
    text += ["### Framework versions", "", f"- PEFT {lora.get('peft_version')}", ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(text))


def complete_cards(folder: str | os.PathLike) -> None:
    """Replace the unfilled template that peft has written; a card that somebody wrote gets licence and base alone.

    Where adapters have names, peft writes one card above their folders.

    Args:
        folder: Folder of an adapter.
    """
    folder = Path(folder)
    path, above = folder / _CARD, folder.parent / _CARD
    base = json.loads((folder / PEFT_CONFIG_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    if not path.is_file() or _is_template(card := ModelCard.load(path)):
        card = adapter_card(folder)
    _complete(card.data, base)
    card.save(path)
    if above.is_file() and _is_template(card := ModelCard.load(above)):
        _complete(card.data, base)
        card.text = _SEVERAL
        card.save(above)


def _is_template(card: ModelCard) -> bool:
    return card.data.library_name == "peft" and "[More Information Needed]" in card.text


def _complete(data: ModelCardData, base: str) -> None:
    """Licence, tags, and the base by its id on the Hub; a folder of this machine is not for publishing."""
    for key, value in WEIGHTS_LICENSE.items():
        setattr(data, key, value)
    data.base_model = hub_id(base)
    tags = {tag for tag in data.tags or [] if not tag.startswith("base_model:")} | {"eupe", "lora"}
    data.tags = sorted(tags | ({f"base_model:adapter:{data.base_model}"} if data.base_model else set()))


def _is_hub_id(name: str) -> bool:
    return hub_id(name) == name


def _linked(base: str) -> str:
    known = hub_id(base)
    return f"[{known}](https://huggingface.co/{known})" if known else "a base model of its own"


def _details(lora: dict) -> list[str]:
    targets = lora["target_modules"]
    if isinstance(targets, str):  # the pattern that `lora_config` makes ends with the names
        targets = targets.rpartition("(?:")[2].rstrip(")").split("|")
    kind = ", ".join(("DoRA",) * lora["use_dora"] + ("rank-stabilised",) * lora["use_rslora"]) or "LoRA"
    return [
        f"- Kind: {kind}, rank {lora['r']}, alpha {lora['lora_alpha']}, dropout {lora['lora_dropout']}",
        f"- Adapted layers: {', '.join(sorted(targets))}",
        f"- Trained in full: {', '.join(lora['modules_to_save'] or ['nothing'])}",
    ]


def _loading(architecture: str, base: str) -> str:
    model_class = _CLASSES.get(architecture)
    base = base if base in VARIANTS else (base if _is_hub_id(base) else "BASE")
    if model_class is None:
        return f"""Build the {architecture} that it was trained on, then:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "PATH")
```
"""
    by_auto_class = model_class is not EupeForMultiTask
    auto_class = (model_class._task_auto_class or "AutoModel") if by_auto_class else "EupeForMultiTask"
    lines = ["import eupe_hf  # pip install 'eupe-hf[train]'"]
    lines += [f"from transformers import AutoImageProcessor{f', {auto_class}' if by_auto_class else ''}"]
    lines += [] if by_auto_class else [f"from eupe_hf import {auto_class}"]
    snippet = "\n".join(lines)
    return f"""```python
{snippet}

processor = AutoImageProcessor.from_pretrained("{base}")
model = {auto_class}.from_pretrained("PATH")
```

Merged into the base, for export or to run without peft:

```python
from eupe_hf.lora import load_peft_model

model = load_peft_model("PATH").merge_and_unload()
model.save_pretrained("MERGED")
```
"""
