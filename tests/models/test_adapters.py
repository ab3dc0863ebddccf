# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Adapters: saved and loaded, merged, switched, refused where they do not fit, and their cards."""

import json
import logging
from pathlib import Path

import peft
import pytest
import torch
from hub_server import HubServer, use_hub
from huggingface_hub import EvalResult, ModelCard
from lora_common import (
    BY_FAMILY,
    BY_TASK,
    HEAD,
    TASKS,
    adapted,
    answer,
    move,
    pixels,
    save_bases,
    saved_adapter,
    saved_whole,
    trained,
)
from modeling_common import tiny_config
from PIL import Image
from published import checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from eupe_hf import (
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeModel,
)
from eupe_hf.lora import adapter_card, load_peft_model, lora_config


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory)


# ---- saved and loaded ----


@BY_FAMILY
@BY_TASK
def test_adapter_comes_back_bit_equal(family: str, task: type, tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = task.from_pretrained(bases[family], **HEAD)
    wrapped = trained(model, lora_config(model, r=2, targets="all"))
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(bases[family])
    for loaded in (task.from_pretrained(tmp_path / "adapter"), TASKS[task].from_pretrained(tmp_path / "adapter")):
        assert type(loaded) is task and not loaded.training
        assert torch.equal(answer(loaded), expected)
    torch.manual_seed(5)  # another fresh head, that the adapter replaces
    fresh = peft.PeftModel.from_pretrained(task.from_pretrained(bases[family], **HEAD), tmp_path / "adapter")
    assert torch.equal(answer(fresh), expected)
    with fresh.disable_adapter():
        assert not torch.allclose(answer(fresh), expected, atol=1e-3)
    # as ordinary models
    again = load_peft_model(tmp_path / "adapter")
    assert torch.equal(answer(again), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(answer(merged), expected, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    ordinary = TASKS[task].from_pretrained(tmp_path / "merged")
    assert type(ordinary) is task and torch.equal(answer(ordinary), answer(merged))
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))


@BY_FAMILY
@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True, "r": 4}], ids=lambda o: next(iter(o)))
def test_kinds_of_lora_come_back_and_merge(family: str, options: dict, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3)
    config = lora_config(model, **{"r": 2, "targets": "all"} | options)
    assert config.lora_alpha == config.r
    wrapped = trained(model, config)
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(tmp_path)), expected)
    torch.testing.assert_close(answer(load_peft_model(tmp_path).merge_and_unload()), expected, atol=1e-5, rtol=0)


# ---- several tasks, several adapters ----


HEADS = {
    "parts": {"task": "segmentation", "num_labels": 3, "out_indices": [1, 3]},
    "scene": {"task": "classification", "num_labels": 5},
    "depth": {"task": "depth", "num_depth_bins": 8},
}


def predictions(model: nn.Module, tasks: list[str] | None = None) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found = model.eval()(pixel_values=pixels(), tasks=tasks).predictions
    return {name: p["predicted_depth"] if "predicted_depth" in p else p["logits"] for name, p in found.items()}


@BY_FAMILY
def test_multitask_saves_the_heads_that_train(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = EupeForMultiTask.from_pretrained(bases[family], heads=HEADS)
    wrapped = trained(model, lora_config(model, r=2))
    assert saved_whole(wrapped) == [f"heads.{name}" for name in sorted(HEADS)]
    expected = predictions(wrapped)
    wrapped.save_pretrained(tmp_path / "all")
    loaded = EupeForMultiTask.from_pretrained(tmp_path / "all")
    for name, tensor in predictions(loaded).items():
        assert torch.equal(tensor, expected[name])
    with pytest.raises(ValueError, match="trained on an EupeForMultiTask"):
        AutoModel.from_pretrained(tmp_path / "all")
    merged = load_peft_model(tmp_path / "all").merge_and_unload()
    for name, tensor in predictions(merged).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")  # with the heads in it, a base for the next adapter
    again.freeze_head("depth")
    before = {key: tensor.clone() for key, tensor in again.heads["depth"].state_dict().items()}
    wrapped = trained(again, lora_config(again, r=2))
    assert saved_whole(wrapped) == ["heads.parts", "heads.scene"]
    wrapped.train()(pixel_values=pixels(), labels={"depth": 1 + torch.rand(2, 64, 64)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.heads["depth"].state_dict().items())
    wrapped.save_pretrained(tmp_path / "two")
    assert not any("depth" in name for name in load_file(tmp_path / "two" / "adapter_model.safetensors"))
    expected = predictions(wrapped)
    loaded = EupeForMultiTask.from_pretrained(tmp_path / "two")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in predictions(loaded).items())


def test_frozen_head_that_is_not_in_the_base_is_missed(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForMultiTask.from_pretrained(bases["vit"], heads=HEADS)
    model.freeze_head("scene")
    trained(model, lora_config(model, r=2)).save_pretrained(tmp_path)
    for load in (EupeForMultiTask.from_pretrained, load_peft_model):
        with pytest.raises(ValueError, match=r"heads\.scene\..* is neither in the base nor in the adapter"):
            load(tmp_path)


@BY_FAMILY
def test_adapters_and_heads_of_one_shape_are_switched(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    expected = {}
    for seed, name in enumerate(("cats", "dogs")):
        model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3)
        # another rank and other targets for each
        wrapped = trained(model, lora_config(model, r=2 + seed, targets=("mlp", "all")[seed]), seed)
        expected[name] = answer(wrapped)
        wrapped.save_pretrained(tmp_path / name)
    assert not torch.allclose(expected["cats"], expected["dogs"], atol=1e-2)
    wrapped = load_peft_model(tmp_path / "cats")
    wrapped.load_adapter(tmp_path / "dogs", adapter_name="dogs")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "cats")
    plain.load_adapter(tmp_path / "dogs", adapter_name="dogs")
    for model in (wrapped, plain):
        for active, name in (("dogs", "dogs"), ("default", "cats"), ("dogs", "dogs")):
            model.set_adapter(active)
            assert torch.equal(answer(model), expected[name])
    # what transformers loaded is saved so that it loads again
    plain.set_adapter("dogs")
    plain.save_pretrained(tmp_path / "again")
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(tmp_path / "again")), expected["dogs"])


@BY_FAMILY
def test_adapter_loaded_last_is_active_with_its_head(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    expected = []
    for seed in range(2):
        model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3)
        wrapped = trained(model, lora_config(model, r=2 + seed), seed)
        expected.append(answer(wrapped))
        wrapped.save_pretrained(tmp_path / str(seed))
    for is_trainable in (False, True):
        model = EupeForImageClassification.from_pretrained(tmp_path / "0")
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model.load_adapter(tmp_path / "1", adapter_name="second", is_trainable=is_trainable)
        assert model.active_adapters() == ["second"] and torch.equal(answer(model), expected[1])
        # what trains is not decided by what is active
        now = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name for name in now if ".second." not in name} == trains
        model.set_adapter("default")
        assert torch.equal(answer(model), expected[0])


@BY_FAMILY
def test_adapter_that_fails_leaves_the_model_as_it_was(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    first, second = (saved_adapter(family, bases[family], tmp_path / name) for name in ("first", "second"))
    file = second / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in sorted(tensors) if "lora_B" in name))
    save_file(tensors, file)
    model = EupeForImageClassification.from_pretrained(first)
    expected = answer(model)
    with pytest.raises(ValueError, match=r"second can't be loaded: it lacks 1 tensors, among them .*lora_B"):
        model.load_adapter(second, adapter_name="other")
    assert list(model.peft_config) == ["default"] and torch.equal(answer(model), expected)
    with pytest.raises(ValueError, match=r"second can't be loaded: it lacks 1 tensors, among them .*lora_B"):
        load_peft_model(second)


def test_second_adapter_on_a_wrapped_model(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForSegmentation.from_pretrained(bases["vit"], num_labels=3)
    wrapped = trained(model, lora_config(model, r=2))
    first = answer(wrapped)
    second = lora_config(wrapped, r=3, targets="all")
    assert second.modules_to_save == {"head"} or list(second.modules_to_save) == ["head"]
    wrapped.add_adapter("second", second)
    wrapped.set_adapter("second")
    assert len(adapted(wrapped)) == 18 and saved_whole(wrapped) == ["head"]
    move(wrapped, 3)
    expected = answer(wrapped)
    wrapped.set_adapter("default")
    assert torch.equal(answer(wrapped), first)
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(EupeForSegmentation.from_pretrained(tmp_path)), first)
    assert torch.equal(answer(EupeForSegmentation.from_pretrained(tmp_path / "second")), expected)


@BY_FAMILY
def test_heads_of_other_shapes_go_with_an_adapter_each(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = EupeForMultiTask.from_pretrained(bases[family], heads=HEADS)
    wrapped = peft.get_peft_model(model, lora_config(model, r=2, modules_to_save=["heads.parts"]), "parts")
    for name in ("scene", "depth"):
        wrapped.add_adapter(name, lora_config(wrapped, r=2, modules_to_save=[f"heads.{name}"]))
    expected = {}
    for seed, name in enumerate(HEADS):
        wrapped.set_adapter(name)
        move(wrapped, seed)
        expected[name] = predictions(wrapped, [name])[name]
    assert len({tensor.shape for tensor in expected.values()}) == len(HEADS)
    assert sorted(saved_whole(wrapped)) == sorted(f"heads.{name}" for name in HEADS)
    for name in HEADS:
        wrapped.set_adapter(name)
        found = predictions(wrapped)
        assert torch.equal(found[name], expected[name])
        # with this adapter the other heads are as they came, on another encoder
        others = set(HEADS) - {name}
        assert not any(torch.allclose(found[other], expected[other], atol=1e-3) for other in others)
        trains = {n for n, p in wrapped.get_base_model().named_parameters() if p.requires_grad}
        assert trains and not any(n.startswith(tuple(f"heads.{other}" for other in others)) for n in trains)
    wrapped.save_pretrained(tmp_path)
    fresh = EupeForMultiTask.from_pretrained(bases[family], heads=HEADS)
    fresh = peft.PeftModel.from_pretrained(fresh, tmp_path / "parts", adapter_name="parts")
    for name in ("scene", "depth"):
        fresh.load_adapter(tmp_path / name, adapter_name=name)
    for name in HEADS:
        fresh.set_adapter(name)
        assert torch.equal(predictions(fresh, [name])[name], expected[name])


# ---- the base: its name, and what is said where it does not fit ----


def test_short_name_stays_and_asks_for_nothing(tmp_path: Path) -> None:
    raw, _ = checkpoint("eupe-t")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo("facebook/EUPE-ViT-T", {"EUPE-ViT-T.pt": raw})
        model = AutoModelForImageClassification.from_pretrained("eupe-t", num_labels=3)
        server.reset_log()
        wrapped = trained(model, lora_config(model, r=2))
        expected = answer(wrapped)
        wrapped.save_pretrained(tmp_path / "adapter")
        for load in (AutoModelForImageClassification.from_pretrained, EupeForImageClassification.from_pretrained):
            loaded = load(tmp_path / "adapter")
            assert torch.equal(answer(loaded), expected)
            assert loaded.name_or_path == "eupe-t"
        again = load_peft_model(tmp_path / "adapter", is_trainable=True)
        assert torch.equal(answer(again), expected) and again.get_nb_trainable_parameters()[0] > 0
        again.save_pretrained(tmp_path / "again")
        merged = again.merge_and_unload()
        assert merged.name_or_path == "eupe-t"
        classify = pipeline("image-classification", model=str(tmp_path / "adapter"))
        found = classify(Image.new("RGB", (64, 64), "red"), top_k=3)
        assert server.requests == []
    assert len(found) == 3 and sum(row["score"] for row in found) == pytest.approx(1, abs=1e-4)
    for folder in ("adapter", "again"):
        saved = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == "eupe-t"
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.base_model == "facebook/EUPE-ViT-T"
        assert "base_model:adapter:facebook/EUPE-ViT-T" in card.data.tags
        assert str(tmp_path) not in card.content + json.dumps(saved)
        assert str(tmp_path) not in (tmp_path / folder / "eupe_config.json").read_text()


def test_adapter_on_the_hub_is_loaded(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForSegmentation.from_pretrained(bases["convnext"], num_labels=3)
    model.name_or_path = "someone/base"
    wrapped = trained(model, lora_config(model, r=2))
    expected = answer(wrapped)
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo("someone/base", {path.name: path.read_bytes() for path in bases["convnext"].iterdir()})
        wrapped.save_pretrained(tmp_path / "adapter")
        files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
        server.add_repo("someone/adapter", files)
        for load in (AutoModelForSemanticSegmentation.from_pretrained, EupeForSegmentation.from_pretrained):
            assert torch.equal(answer(load("someone/adapter")), expected)
            assert torch.equal(answer(load("someone/adapter", revision="main")), expected)
        assert torch.equal(answer(load_peft_model("someone/adapter")), expected)
        assert server.repo_ids_requested() <= {"someone/adapter", "someone/base"}
    assert ModelCard.load(tmp_path / "adapter" / "README.md").data.base_model == "someone/base"


def rebase(folder: Path, base: str | None) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


@BY_FAMILY
def test_adapter_that_does_not_fit_is_refused(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter(family, bases[family], tmp_path / "adapter")
    loads = (EupeForImageClassification.from_pretrained, load_peft_model)
    with pytest.raises(ValueError, match="was trained on an EupeForImageClassification"):
        EupeForSegmentation.from_pretrained(folder)
    sizes = {
        "vit": ({"hidden_size": 16}, {"num_hidden_layers": 4}, {"num_hidden_layers": 2}),
        "convnext": ({"hidden_sizes": [4, 8, 8, 12]}, {"depths": [1, 1, 3, 1]}, {"depths": [1, 1, 1, 1]}),
    }
    reasons = (r"does not fit .*other", r"does not fit .*the base has .*encoder", r"lacks \d+ weights of the encoder")
    for fields, reason in zip(sizes[family], (r"does not fit .* another architecture", *reasons[1:]), strict=True):
        other = EupeForImageClassification(tiny_config(family, num_labels=3, **fields))
        if reason is not reasons[1]:
            with pytest.raises(ValueError, match="does not fit this EupeForImageClassification"):
                other.load_adapter(folder)
        other.save_pretrained(tmp_path / "other")
        rebase(folder, str(tmp_path / "other"))
        for load in loads:
            with pytest.raises(ValueError, match=reason):
                load(folder)
    deeper = EupeForImageClassification(tiny_config(family, num_labels=3, **sizes[family][1]))
    with pytest.raises(ValueError, match=r"it lacks \d+ tensors"):
        deeper.load_adapter(folder)


def test_missing_base_is_explained(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    rebase(folder, str(tmp_path / "gone"))
    for load in (EupeForImageClassification.from_pretrained, load_peft_model):
        with pytest.raises(OSError, match=r"is for .*gone.*was not found(.|\n)*base_model_name_or_path"):
            load(folder, local_files_only=True)
    with pytest.raises(OSError, match="gone"):
        AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    rebase(folder, None)
    for load in (EupeForImageClassification.from_pretrained, load_peft_model):
        with pytest.raises(ValueError, match="does not say which model it is for"):
            load(folder)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_adapter_is_refused(kept: int, tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    for load in (
        EupeForImageClassification.from_pretrained,
        AutoModelForImageClassification.from_pretrained,
        load_peft_model,
    ):
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
            load(folder)


def test_settings_of_the_call_reach_the_model(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    for loader in (EupeForImageClassification, AutoModelForImageClassification):
        model = loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16)
        assert model.eupe.config._attn_implementation == "eager"
        assert model.eupe.norm.weight.dtype == torch.bfloat16 and model.config.num_labels == 3


@pytest.mark.parametrize("use_dora", [False, True])
def test_loading_reports_nothing_as_missing(use_dora: bool, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases["vit"], num_labels=3)
    trained(model, lora_config(model, r=2, use_dora=use_dora)).save_pretrained(tmp_path)
    logger, handler = logging.getLogger("transformers"), Messages()
    logger.addHandler(handler)
    try:
        EupeForImageClassification.from_pretrained(tmp_path)
        load_peft_model(tmp_path)
        assert not handler.found
        EupeForImageClassification.from_pretrained(bases["vit"])  # here the head is missing indeed
        assert any("head" in message for message in handler.found)
    finally:
        logger.removeHandler(handler)


class Messages(logging.Handler):
    """Keeps what is logged about loading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "LOAD REPORT" in record.getMessage():
            self.found.append(record.getMessage())


# ---- cards ----


def test_card_says_what_it_is(tmp_path: Path) -> None:
    model = EupeForSegmentation(tiny_config("vit", num_labels=3))
    model.name_or_path = "eupe-s"
    wrapped = peft.get_peft_model(model, lora_config(model, r=4, targets="all", use_dora=True))
    wrapped.save_pretrained(tmp_path / "leaves")
    card = ModelCard.load(tmp_path / "leaves" / "README.md")
    assert card.data.license == "other" and card.data.license_name == "fair-noncommercial-research-license"
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.base_model == "facebook/EUPE-ViT-S" and {"eupe", "lora"} <= set(card.data.tags)
    assert "More Information Needed" not in card.text
    for text in ("EupeForSegmentation", "DoRA, rank 4, alpha 4", "down_proj, k_proj", "Trained in full: head",
                 "AutoModelForSemanticSegmentation", "merge_and_unload", "FAIR Noncommercial"):  # fmt: skip
        assert text in card.text, text
    # with what a recipe knows
    metric = EvalResult(
        task_type="image-segmentation", dataset_type="someone/leaves", dataset_name="leaves", metric_type="mean_iou",
        metric_value=0.75, metric_name="mIoU",
    )  # fmt: skip
    card = adapter_card(tmp_path / "leaves", dataset="someone/leaves", metrics=[metric], recipe="100 steps.")
    card.save(tmp_path / "leaves" / "README.md")
    wrapped.save_pretrained(tmp_path / "leaves")  # a later save keeps it
    card = ModelCard.load(tmp_path / "leaves" / "README.md")
    assert card.data.datasets == ["someone/leaves"] and card.data.eval_results == [metric]
    assert "| mIoU | leaves | 0.75 |" in card.text and "100 steps." in card.text
    assert card.data.base_model == "facebook/EUPE-ViT-S" and card.data.license == "other"


def test_card_that_you_wrote_is_kept_and_gets_the_licence(tmp_path: Path, bases: dict[str, Path]) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy words.\n")
    model = EupeModel.from_pretrained(bases["vit"])
    peft.get_peft_model(model, lora_config(model, r=2)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "My words." in card.text and card.data.license == "other"
    assert card.data.base_model is None  # a folder of this machine
    assert str(bases["vit"]) not in card.content


def test_named_adapters_have_cards(tmp_path: Path) -> None:
    model = EupeModel(tiny_config("vit"))
    model.name_or_path = "facebook/EUPE-ViT-T"
    wrapped = peft.get_peft_model(model, lora_config(model, r=2), "first")
    wrapped.add_adapter("second", lora_config(wrapped, r=3))
    wrapped.save_pretrained(tmp_path)
    for path, text in (("first/", "rank 2"), ("second/", "rank 3"), ("", "Adapters for EUPE")):
        card = ModelCard.load(tmp_path / f"{path}README.md")
        assert text in card.text and "More Information Needed" not in card.text
        assert card.data.license == "other" and card.data.base_model == "facebook/EUPE-ViT-T"
