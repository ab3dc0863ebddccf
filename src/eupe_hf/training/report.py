# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves behind: the model, its processor, results, a curve, and a card that says how it was made.

Needs `pip install 'eupe-hf[train]'`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard
from torch import nn

from eupe_hf.data.options import DataArguments, InputArguments
from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.models.modeling_eupe import EupePreTrainedModel
from eupe_hf.models.modeling_eupe_cards import model_card
from eupe_hf.variants import VARIANTS

from .options import ModelArguments, RecipeArguments
from .trainer import RecipeTrainer


_NAMED = frozenset(field.name for field in fields(DataArguments))  # not settings: names of files and columns


@dataclass(frozen=True)
class Evaluated:
    """What one task of a run was evaluated on.

    Args:
        protocol: Of `EvaluationResult`.
        data: Options of its data.
        split: The part of the data.
        num_examples: Images in it.
        prefix: How the names of its metrics begin, where a run has several tasks.
        score: Which of them counts for the run, where it has several tasks.
    """

    protocol: str
    data: DataArguments
    split: str
    num_examples: int
    prefix: str = ""
    score: str = ""


def finish(trainer: RecipeTrainer, protocol: str, model: ModelArguments, data: DataArguments, eval_split: str) -> str:
    """`finish_tasks` for the recipes with one task.

    Args:
        trainer: After training.
        protocol: Of `EvaluationResult`.
        model: Options of the run.
        data: Options of the run.
        eval_split: What was evaluated on.
    """
    return finish_tasks(trainer, model, data, [Evaluated(protocol, data, eval_split, len(trainer.eval_dataset))])


def finish_tasks(
    trainer: RecipeTrainer, model: ModelArguments, data: InputArguments, tasks: Sequence[Evaluated]
) -> str:
    """Evaluate once more, and save the model (merged, if asked), processor, results, curve and card; push, if asked.

    The trainer leaves the group of processes with it, and is not to be used any more.

    Args:
        trainer: After training.
        model: Options of the run.
        data: Options of the run.
        tasks: What was evaluated.

    Returns:
        The table of losses and metrics, to be printed.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    if args.merge:
        trainer.model = trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    history = list(trainer.state.log_history)
    scores = _scores(trainer.evaluate())  # of what is saved: the best model, merged if asked
    shown = [f"{task.prefix}{task.score}" for task in tasks if task.score]
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        options = settings(args, model, data, tasks, trainer.state.global_step) | _streamed(trainer.train_dataset)
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        results = [_result(task, finite, folder.resolve().name, options) for task in tasks]
        _save_results(folder / "results.json", results, finite, tasks)
        draw_curve(history, folder / "curve.png", args.metric_for_best_model, *shown)
        trainer.card = recipe_card(folder, trainer.accelerator.unwrap_model(trainer.model), results)
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()
    losses = [f"{task.prefix}loss" for task in tasks if task.score]
    return history_table(history, scores, ["loss", "score", *losses, *shown] if shown else None)


def _result(task: Evaluated, scores: Mapping[str, float], model: str, options: Mapping[str, Any]) -> EvaluationResult:
    """The scores of one task."""
    return EvaluationResult(
        protocol=task.protocol,
        model=model,
        dataset=_public(task.data.dataset),
        split=task.split,
        num_examples=task.num_examples,
        metrics={k.removeprefix(task.prefix): v for k, v in scores.items() if k.startswith(task.prefix)},
        settings=options,
        dataset_config=task.data.dataset_config,
    )


def _save_results(
    path: Path, results: Sequence[EvaluationResult], scores: Mapping[str, float], tasks: Sequence[Evaluated]
) -> None:
    """The result of the only task, or all scores and settings once and below them the results by task."""
    if not tasks[0].prefix:
        results[0].save(path)
        return
    parts = {task.protocol: replace(result, settings=None) for task, result in zip(tasks, results, strict=True)}
    whole = {"model": results[0].model, "metrics": scores, "settings": results[0].settings}
    whole["tasks"] = {name: part.to_dict() for name, part in parts.items()}
    path.write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def settings(
    args: RecipeArguments, model: ModelArguments, data: InputArguments, tasks: Sequence[Evaluated], steps: int
) -> dict[str, Any]:
    """What the scores depend on, for the results and the card."""
    chosen: dict[str, Any] = {"encoder": _public(model.encoder), "mode": model.mode, "steps": steps}
    chosen |= {"size": data.size, "augment": data.augment, "layers": model.layers}
    if model.mode == "lora":
        names = ("rank", "alpha", "targets", "dropout", "use_dora", "use_rslora", "quantize")
        chosen |= {name: getattr(model, name) for name in names}
        chosen["merged"] = args.merge
    common = {field.name: getattr(data, field.name) for field in fields(InputArguments)}
    for task in tasks:
        own = {field.name: getattr(task.data, field.name) for field in fields(task.data)}
        chosen |= {key: value for key, value in own.items() if key not in _NAMED}
        # what one of several tasks does otherwise than the run
        chosen |= {f"{task.prefix}{key}": own[key] for key, value in common.items() if own[key] != value}
    chosen["evaluation"] = f"whole images squashed to {data.size} x {data.size} pixels"
    rates = ("learning_rate", "head_learning_rate", "layer_decay", "weight_decay", "warmup_steps", "bf16", "seed")
    chosen |= {"batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps}
    chosen |= {name: getattr(args, name) for name in rates}
    chosen |= data.settings()
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


def history_table(
    log_history: Sequence[Mapping[str, Any]], saved: Mapping[str, float], shown: Sequence[str] | None = None
) -> str:
    """Losses and metrics of a run as aligned text: one line per evaluation, and one for the model that is saved.

    Args:
        log_history: What the Trainer has logged.
        saved: Scores of the model that is saved.
        shown: Which of the scores; by default all.
    """
    entries: list[Mapping[str, float]] = [*_history(log_history), {"training loss": math.nan, **saved}]
    names = list(dict.fromkeys(name for entry in entries for name in entry if name != "step"))
    names = names if shown is None else ["training loss", *shown]
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


def recipe_card(folder: Path, model: nn.Module, results: Sequence[EvaluationResult]) -> ModelCard:
    """The card of what a recipe trained: base, data, recipe, metrics, licence, and how to load it.

    Args:
        folder: Where the model, or its adapter, was saved.
        model: The model.
        results: Its scores by task, and the settings that led to them.

    Returns:
        The card, ready to `save`.
    """
    # the settings stand in the table, once; and these are not the scores of the paper's protocols
    metrics = [
        replace(metric, task_name=metric.task_type.replace("-", " "))
        for result in results
        for metric in replace(result, settings=None).eval_results()
    ]
    options, sources = results[0].settings or {}, [result.dataset for result in results]
    chosen = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in options.items())
    where = [f"{result.num_examples} images{_of(result, results)}: {result.split}" for result in results]
    recipe = f"| setting | value |\n|---|---|\n{chosen}\n\nEvaluated on {'; '.join(where)}."
    if hasattr(model, "peft_config"):
        from eupe_hf.lora.cards import adapter_card

        return adapter_card(folder, sources, metrics, recipe, results[0].model)
    card = model_card(cast(EupePreTrainedModel, model))
    card.data.model_name, card.data.eval_results = results[0].model, metrics
    card.data.datasets = [source for source in sources if source.count("/") == 1] or None
    encoder = options.get("encoder", "")
    encoder = VARIANTS[encoder].repo_id if encoder in VARIANTS else encoder
    card.data.base_model = encoder if encoder.count("/") == 1 else None
    scores = "\n".join(
        f"| {name.replace('_', ' ')}{_of(result, results)} | {value:.4f} |"
        for result in results
        for name, value in result.metrics.items()
    )
    card.text += f"\n## Data\n\n{', '.join(sources)}\n\n## Recipe\n\n{recipe}\n\n## Results\n\n"
    card.text += f"| metric | value |\n|---|---|\n{scores}\n"
    return card


def _of(result: EvaluationResult, results: Sequence[EvaluationResult]) -> str:
    """Which task, where there are several."""
    return f" of {result.protocol}" if len(results) > 1 else ""
