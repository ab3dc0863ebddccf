# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves behind: the model, its processor, results, a curve, and a card that says how it was made.

Needs `pip install 'eupe-hf[train]'`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard
from torch import nn

from .evaluation import EvaluationResult
from .modeling_eupe import EupePreTrainedModel, model_card
from .training import ModelArguments, RecipeArguments, RecipeTrainer
from .training_data import DataArguments
from .variants import VARIANTS


def finish(trainer: RecipeTrainer, protocol: str, model: ModelArguments, data: DataArguments, eval_split: str) -> str:
    """Evaluate once more, and save the model (merged, if asked), processor, results, curve and card; push, if asked.

    Args:
        trainer: After training.
        protocol: Of `EvaluationResult`.
        model: Options of the run.
        data: Options of the run.
        eval_split: What was evaluated on.

    Returns:
        The table of losses and metrics, to be printed.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    if args.merge:
        trainer.model = trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    history = list(trainer.state.log_history)
    scores = _scores(trainer.evaluate())  # of what is saved: the best model, merged if asked
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        result = EvaluationResult(
            protocol=protocol,
            model=folder.resolve().name,
            dataset=_public(data.dataset),
            split=eval_split,
            num_examples=len(trainer.eval_dataset),
            metrics={name: value for name, value in scores.items() if math.isfinite(value)},
            settings=settings(args, model, data, trainer.state.global_step) | _streamed(trainer.train_dataset),
            dataset_config=data.dataset_config,
        )
        result.save(folder / "results.json")
        draw_curve(history, folder / "curve.png", args.metric_for_best_model)
        trainer.card = recipe_card(folder, trainer.accelerator.unwrap_model(trainer.model), result)
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # the other processes have had nothing to write
    trainer.accelerator.end_training()
    return history_table(history, scores)


def settings(args: RecipeArguments, model: ModelArguments, data: DataArguments, steps: int) -> dict[str, Any]:
    """What the scores depend on, for the results and the card."""
    chosen: dict[str, Any] = {"encoder": _public(model.encoder), "mode": model.mode, "steps": steps}
    chosen |= {"size": data.size, "augment": data.augment, "layers": model.layers}
    if model.mode == "lora":
        names = ("rank", "alpha", "targets", "dropout", "use_dora", "use_rslora", "quantize")
        chosen |= {name: getattr(model, name) for name in names}
        chosen["merged"] = args.merge
    shared = {field.name for field in fields(DataArguments)}
    chosen |= {field.name: getattr(data, field.name) for field in fields(data) if field.name not in shared}
    chosen["evaluation"] = f"whole images squashed to {data.size} x {data.size} pixels"
    rates = ("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "warmup_steps", "bf16", "seed")
    chosen |= {"batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps}
    chosen |= {name: getattr(args, name) for name in rates}
    return {key: value for key, value in chosen.items() if value is not None}


def _streamed(rows: Any) -> dict[str, Any]:
    """That the training data was a stream, and how many of its rows the first process could not read."""
    return {"streaming": True, "unreadable": int(rows.stream.skipped.sum())} if hasattr(rows, "stream") else {}


def _public(name: str) -> str:
    """A short name or Hub id as it is, a folder without where it lies on this machine."""
    return Path(name).resolve().name if Path(name).exists() else name


def _scores(logged: Mapping[str, Any]) -> dict[str, float]:
    """The loss and the metrics of one evaluation, without its timings."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {key: key.removeprefix("eval_") for key in logged if key.startswith("eval_")}
    return {name: float(logged[key]) for key, name in names.items() if name not in timings}


def _history(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One entry per evaluation: step, mean training loss since the one before, evaluation loss, metrics."""
    entries: list[dict[str, float]] = []
    losses: list[float] = []
    for logged in log_history:
        if "loss" in logged:
            losses.append(logged["loss"])
        scores = _scores(logged)
        if scores:
            mean = sum(losses) / len(losses) if losses else math.nan
            entries.append({"step": logged["step"], "training loss": mean, **scores})
            losses = []
    return entries


def history_table(log_history: Sequence[Mapping[str, Any]], saved: Mapping[str, float]) -> str:
    """Losses and metrics of a run as aligned text: one line per evaluation, and one for the model that is saved."""
    entries: list[Mapping[str, float]] = [*_history(log_history), {"training loss": math.nan, **saved}]
    names = list(dict.fromkeys(name for entry in entries for name in entry if name != "step"))
    titles = ["step", *(name.replace("_", " ") for name in names)]
    table = [titles, *([_cell(entry, name) for name in ("step", *names)] for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in table)


def _cell(entry: Mapping[str, float], name: str) -> str:
    if name == "step":
        return f"{entry['step']:.0f}" if "step" in entry else "saved"
    return f"{entry[name]:.4f}" if math.isfinite(entry.get(name, math.nan)) else ""


def draw_curve(log_history: Sequence[Mapping[str, Any]], path: Path, metric: str | None = None) -> None:
    """A picture of the losses over the steps, and of one metric beside them."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    entries, name = _history(log_history), (metric or "").removeprefix("eval_")
    steps = [entry["step"] for entry in entries]
    has_metric = any(name in entry for entry in entries)
    figure: Any = Figure(figsize=(9 if has_metric else 5, 3.5), layout="constrained")
    axes = figure.subplots(1, 2 if has_metric else 1, squeeze=False)[0]
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if logged:
        axes[0].plot(*zip(*logged, strict=True), label="training", linewidth=1)
    axes[0].plot(steps, [entry.get("loss", math.nan) for entry in entries], "o-", label="evaluation", markersize=3)
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].legend()
    if has_metric:
        axes[1].plot(steps, [entry.get(name, math.nan) for entry in entries], "o-", color="tab:green", markersize=3)
        axes[1].set(xlabel="step", ylabel=name.replace("_", " "))
    figure.savefig(path, dpi=120)


def recipe_card(folder: Path, model: nn.Module, result: EvaluationResult) -> ModelCard:
    """The card of what a recipe trained: base, data, recipe, metrics, licence, and how to load it.

    Args:
        folder: Where the model, or its adapter, was saved.
        model: The model.
        result: Its scores, and the settings that led to them.

    Returns:
        The card, ready to `save`.
    """
    is_public = result.dataset.count("/") == 1
    # the settings stand in the table, once; and these are not the scores of the paper's protocols
    metrics = [
        replace(metric, task_name=metric.task_type.replace("-", " "))
        for metric in replace(result, settings=None).eval_results()
    ]
    options = result.settings or {}
    chosen = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in options.items())
    recipe = f"| setting | value |\n|---|---|\n{chosen}\n\nEvaluated on {result.num_examples} images: {result.split}."
    if hasattr(model, "peft_config"):
        from .adapter_cards import adapter_card

        return adapter_card(folder, result.dataset, metrics, recipe, result.model)
    card = model_card(cast(EupePreTrainedModel, model))
    card.data.model_name, card.data.eval_results = result.model, metrics
    card.data.datasets = [result.dataset] if is_public else None
    encoder = options.get("encoder", "")
    encoder = VARIANTS[encoder].repo_id if encoder in VARIANTS else encoder
    card.data.base_model = encoder if encoder.count("/") == 1 else None
    scores = "\n".join(f"| {key.replace('_', ' ')} | {value:.4f} |" for key, value in result.metrics.items())
    card.text += f"\n## Data\n\n{result.dataset}\n\n## Recipe\n\n{recipe}\n\n## Results\n\n"
    card.text += f"| metric | value |\n|---|---|\n{scores}\n"
    return card


__all__ = ["draw_curve", "finish", "history_table", "recipe_card", "settings"]
