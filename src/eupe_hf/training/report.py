# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training run saves: the model, its processor, results, a curve, and a card that says how it was made.

Needs `pip install 'eupe-hf[train]'`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard
from torch import nn

from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.models.modeling_eupe import EupePreTrainedModel
from eupe_hf.models.modeling_eupe_cards import as_text, hub_id, model_card

from .trainer import CardTrainer, scores_of


_RATES = ("learning_rate", "head_learning_rate", "projector_learning_rate", "layer_decay", "weight_decay",
          "warmup_steps", "bf16", "seed")  # fmt: skip


def recipe_card(folder: Path, model: nn.Module, results: Sequence[EvaluationResult]) -> ModelCard:
    """The card of what a recipe trained: base, data, recipe, metrics, licence, and how to load it.

    Args:
        folder: Where the model, or its adapter, was saved.
        model: The model.
        results: Its scores by task, and the settings that led to them.
    """
    # the settings stand in the table, once; and these are not the scores of the paper's protocols
    metrics = [
        replace(metric, task_name=metric.task_type.replace("-", " "))
        for result in results
        for metric in replace(result, settings=None).eval_results()
    ]
    sources = [result.dataset for result in results]
    where = [f"{result.num_examples} images{_of(result, results)}: {as_text(result.split)}" for result in results]
    recipe = f"{settings_table(results[0])}\n\nEvaluated on {'; '.join(where)}."
    if hasattr(model, "peft_config"):
        from eupe_hf.lora.cards import adapter_card

        return adapter_card(folder, sources, metrics, recipe, results[0].model)
    card = model_card(cast(EupePreTrainedModel, model))
    card.data.model_name, card.data.eval_results = results[0].model, metrics
    card.data.datasets = [source for source in sources if hub_id(source) == source] or None
    card.data.base_model = hub_id((results[0].settings or {}).get("encoder"))
    describe(card, ", ".join(sources), recipe, results)
    return card


def describe(card: ModelCard, data: str, recipe: str, results: Sequence[EvaluationResult]) -> None:
    """Add data, in plain words, recipe, in markdown, and scores to the text of a card."""
    scores = "\n".join(
        f"| {as_text(name.replace('_', ' '))}{_of(result, results)} | {value:.4f} |"
        for result in results
        for name, value in result.metrics.items()
    )
    card.text += f"\n## Data\n\n{as_text(data)}\n\n## Recipe\n\n{recipe}\n\n## Results\n\n"
    card.text += f"| metric | value |\n|---|---|\n{scores}\n"


def settings_table(result: EvaluationResult) -> str:
    """The settings of a run in markdown."""
    rows = "\n".join(
        f"| {as_text(key.replace('_', ' '))} | {as_text(value)} |" for key, value in (result.settings or {}).items()
    )
    return f"| setting | value |\n|---|---|\n{rows}"


def _of(result: EvaluationResult, results: Sequence[EvaluationResult]) -> str:
    """Which task, where there are several."""
    return f" of {result.protocol}" if len(results) > 1 else ""


def finish(
    trainer: CardTrainer,
    model: Any,
    make_card: Callable[[Path, nn.Module, Sequence[EvaluationResult]], ModelCard] = recipe_card,
) -> str:
    """Evaluate once more, and save model (merged, if asked), processor, results, curve and card; push, if asked.

    The trainer leaves the group of processes. Do not use it afterwards.

    Args:
        trainer: After training.
        model: Options of the model, with `settings`.
        make_card: Makes the card from the folder, the model and the results by task.

    Returns:
        The table of losses and metrics, and how to use what was saved.
    """
    args, folder, task = trainer.args, Path(trainer.args.output_dir), trainer.task
    trainer.settle()
    history = list(trainer.state.log_history)
    scores = trainer.scores()  # of what is saved: the best model, merged if asked
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        common = {"model": folder.resolve().name, "settings": _settings(trainer, model)}
        results = {}
        for name, part in task.parts.items():
            prefix = f"{name}_" if name else ""
            own = {key.removeprefix(prefix): value for key, value in finite.items() if key.startswith(prefix)}
            results[name] = replace(part.result(), metrics=own, **common)
        _save_results(folder / "results.json", results, finite)
        draw_curve(history, folder / "curve.png", args.metric_for_best_model, *task.shown)
        trainer.card = make_card(folder, trainer.accelerator.unwrap_model(trainer.model), list(results.values()))
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()
    shown = ["loss", "score", *(f"{name}_loss" for name in task.parts), *task.shown] if task.shown else None
    return f"{history_table(history, scores, shown)}\nSaved {args.output_dir}: {task.use(args.output_dir)}"


def _settings(trainer: CardTrainer, model: Any) -> dict[str, Any]:
    """What the scores depend on, for results and card."""
    args, rows = trainer.args, trainer.train_dataset
    chosen = model.settings()
    chosen |= {"merged": args.merge} if "rank" in chosen else {}
    chosen |= {"steps": trainer.state.global_step, **trainer.task.settings()}
    chosen["batch_size"] = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    chosen |= {name: getattr(args, name, None) for name in _RATES}
    if hasattr(rows, "stream"):  # and how many of its rows the first process could not read
        chosen |= {"streaming": True, "unreadable": int(rows.stream.skipped.sum())}
    return {key: value for key, value in chosen.items() if value is not None}


def _save_results(path: Path, results: Mapping[str, EvaluationResult], scores: Mapping[str, float]) -> None:
    """The result of the only task, or all scores and settings once and below them the results by task."""
    if "" in results:
        results[""].save(path)
        return
    first = next(iter(results.values()))
    whole = {"model": first.model, "metrics": scores, "settings": first.settings}
    whole["tasks"] = {name: replace(result, settings=None).to_dict() for name, result in results.items()}
    path.write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _history(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One entry per evaluation: step, mean training loss since the one before, evaluation loss, metrics."""
    entries: list[dict[str, float]] = []
    losses: list[float] = []
    for logged in log_history:
        if "loss" in logged:
            losses.append(logged["loss"])
        scores = scores_of(logged)
        if scores:
            mean = sum(losses) / len(losses) if losses else math.nan
            entries.append({"step": logged["step"], "training_loss": mean, **scores})
            losses = []
    return entries


def history_table(
    log_history: Sequence[Mapping[str, Any]], saved: Mapping[str, float], shown: Sequence[str] | None = None
) -> str:
    """Losses and metrics of a run as aligned text: one line per evaluation, and one for the model that is saved.

    Args:
        log_history: What the Trainer has logged.
        saved: Scores of the model that is saved.
        shown: Which of the scores; by default all.
    """
    entries: list[Mapping[str, float]] = [*_history(log_history), {"training_loss": math.nan, **saved}]
    names = list(dict.fromkeys(name for entry in entries for name in entry if name != "step"))
    names = names if shown is None else ["training_loss", *shown]
    titles = ["step", *(name.replace("_", " ") for name in names)]
    table = [titles, *([_cell(entry, name) for name in ("step", *names)] for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in table)


def _cell(entry: Mapping[str, float], name: str) -> str:
    if name == "step":
        return f"{entry['step']:.0f}" if "step" in entry else "saved"
    return f"{entry[name]:.4f}" if math.isfinite(entry.get(name, math.nan)) else ""


def draw_curve(log_history: Sequence[Mapping[str, Any]], path: Path, *metrics: str | None) -> None:
    """A picture of the losses over the steps, and of metrics beside them."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    entries = _history(log_history)
    steps = [entry["step"] for entry in entries]
    wanted = dict.fromkeys((metric or "").removeprefix("eval_") for metric in metrics)
    names = [name for name in wanted if any(name in entry for entry in entries)]
    figure: Any = Figure(figsize=(9 if names else 5, 3.5), layout="constrained")
    axes = figure.subplots(1, 2 if names else 1, squeeze=False)[0]
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if logged:
        axes[0].plot(*zip(*logged, strict=True), label="training", linewidth=1)
    if any("loss" in entry for entry in entries):
        axes[0].plot(steps, [entry.get("loss", math.nan) for entry in entries], "o-", label="evaluation", markersize=3)
    axes[0].set(xlabel="step", ylabel="loss")
    if axes[0].lines:
        axes[0].legend()
    for place, name in enumerate(names):
        values, label = [entry.get(name, math.nan) for entry in entries], name.replace("_", " ")
        axes[1].plot(steps, values, "o-", color=f"C{(place + 2) % 10}", markersize=3, label=label)
    if names:
        axes[1].set(xlabel="step", ylabel=names[0].replace("_", " "))
    if len(names) > 1:
        axes[1].legend()
    figure.savefig(path, dpi=120)
