# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Several heads on one encoder: the same results as single-task models, joint training, heads that come and go."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from modeling_common import tiny_config
from transformers import AutoConfig, AutoImageProcessor, AutoModel, Trainer, TrainingArguments
from transformers.pipelines import PIPELINE_REGISTRY

from eupe_hf import (
    EupeConfig,
    EupeForDepthEstimation,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeModel,
    EupeMultiTaskConfig,
)
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS


FAMILIES = pytest.mark.parametrize("family", ["vit", "convnext"])
HEADS = {
    "boxes": {"task": "detection", "num_labels": 2, "detection_hidden_size": 16},
    "defects": {"task": "segmentation", "num_labels": 2, "out_indices": [2, 3], "loss_weight": 0.5},
    "depth": {"task": "depth", "num_depth_bins": 8},
    "parts": {"task": "segmentation", "num_labels": 3, "out_indices": [1, 3]},
    "scene": {"task": "classification", "id2label": {0: "in", 1: "out"}, "classify_patch_mean": True},
}


def tiny(family: str, heads: dict | None = None) -> EupeForMultiTask:
    torch.manual_seed(0)
    encoder = tiny_config(family, layerscale_value=0.5)
    return EupeForMultiTask(
        EupeMultiTaskConfig(encoder_config=encoder, heads=HEADS if heads is None else heads)
    ).eval()


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def tensors(outputs) -> dict[str, torch.Tensor]:
    """The main output of each head."""
    found = outputs.predictions.items()
    return {name: p.predicted_depth if "predicted_depth" in p else p.logits for name, p in found}


def all_labels(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.5]])
    return {
        "boxes": [{"class_labels": torch.tensor([0, 1]), "boxes": boxes + 0.01 * (i % 3)} for i in range(batch)],
        "scene": torch.randint(0, 2, (batch,), generator=generator),
        "parts": torch.randint(0, 3, (batch, 40, 50), generator=generator),
        "defects": torch.randint(0, 2, (batch, 64, 96), generator=generator),
        "depth": 9 * torch.rand(batch, 64, 96, generator=generator) + 0.5,
    }


def assert_equal_outputs(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_every_task_model_declares_its_task_and_fields_of_the_configuration() -> None:
    assert list(TASK_MODELS) == ["classification", "segmentation", "depth", "detection"]
    fields = {"out_indices", "id2label", "problem_type", *EupeConfig.__annotations__}
    for task, task_class in TASK_MODELS.items():
        assert task_class.task == task
        assert set(task_class.head_fields) <= fields, task
        assert issubclass(task_class.head_class, torch.nn.Module) and hasattr(
            transformers, task_class._task_auto_class
        )
        assert task_class._pipeline_tag in PIPELINE_REGISTRY.get_supported_tasks()


@FAMILIES
def test_one_pass_equals_the_single_task_models(family: str) -> None:
    model = tiny(family)
    runs = []
    handle = model.eupe.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        outputs = model(pixels())
        assert runs == [1]
        handle.remove()
        for name, tensor in tensors(outputs).items():
            single = model.task_model(name)
            assert type(single) is TASK_MODELS[HEADS[name]["task"]] and not single.training
            found = single(pixels())
            assert torch.equal(found.predicted_depth if "predicted_depth" in found else found.logits, tensor)
            assert single.config.num_labels == model.config.head_config(name).num_labels
        assert_equal_outputs(tensors(model(pixels(), tasks=["depth", "scene"])), {
            name: tensors(outputs)[name] for name in ("depth", "scene")
        })  # fmt: skip
        assert_equal_outputs(tensors(model(pixels())), tensors(outputs))
        found = model.task_model("boxes")(pixels()).pred_boxes
        assert torch.equal(found, outputs.predictions["boxes"].pred_boxes) and found.shape[1:] == (126, 4)
        hidden = model(pixels(), output_hidden_states=True).hidden_states
        expected = EupeModel(model.eupe.config)
        expected.load_state_dict(model.eupe.state_dict())
        assert all(
            torch.equal(a, b)
            for a, b in zip(hidden, expected.eval()(pixels(), output_hidden_states=True).hidden_states, strict=True)
        )


@FAMILIES
def test_task_models_are_joined_and_taken_apart_without_a_change(family: str, tmp_path: Path) -> None:
    source = tiny(family)
    singles = {}
    for name in HEADS:  # trained apart from each other, so each has an encoder of its own, with equal weights
        source.task_model(name).save_pretrained(tmp_path / name)
        singles[name] = TASK_MODELS[HEADS[name]["task"]].from_pretrained(tmp_path / name)
    joined = EupeForMultiTask.from_task_models(singles, loss_weights={"defects": 0.5})
    assert joined.eupe.encoder is next(iter(singles.values())).eupe.encoder  # one encoder is left, not four
    assert joined.config.heads == source.config.heads
    with torch.inference_mode():
        expected = tensors(source(pixels()))
        assert_equal_outputs(tensors(joined(pixels())), expected)
        folders = EupeForMultiTask.from_task_models({name: tmp_path / name for name in HEADS})
        assert_equal_outputs(tensors(folders(pixels())), expected)


def test_models_with_different_encoders_are_not_joined() -> None:
    torch.manual_seed(0)
    one = EupeForDepthEstimation(tiny_config("vit"))
    other = EupeForSegmentation(tiny_config("vit"))
    with pytest.raises(ValueError, match=r"'a' and 'b' do not share an encoder: encoder.*differs.*freeze_backbone"):
        EupeForMultiTask.from_task_models({"a": one, "b": other})
    other = EupeForSegmentation(tiny_config("vit", hidden_size=48))
    with pytest.raises(ValueError, match="hidden_size is 32 in one and 48 in the other"):
        EupeForMultiTask.from_task_models({"a": one, "b": other})
    other = EupeForSegmentation(one.config)
    other.eupe.load_state_dict(one.eupe.state_dict())
    assert list(EupeForMultiTask.from_task_models({"a": one, "b": other}).heads) == ["a", "b"]
    with pytest.raises(ValueError, match=r"encoder.*differs"):
        EupeForMultiTask.from_task_models({"a": one, "b": other.to(torch.bfloat16)})
    with pytest.raises(ValueError, match=r"must be one of EupeForImageClassification, .*, got EupeModel"):
        EupeForMultiTask.from_task_models({"a": EupeModel(one.config)})
    with pytest.raises(ValueError, match="at least one model"):
        EupeForMultiTask.from_task_models({})


_ISOLATED = """
import sys
sys.modules["eupe_hf"] = None
import torch
from transformers import AutoModel
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.inference_mode():
    predictions = model(torch.load(f"{folder}/pixels.pt")).predictions
    found = {name: p.predicted_depth if "predicted_depth" in p else p.logits for name, p in predictions.items()}
torch.save(found, f"{folder}/outputs.pt")
"""


@FAMILIES
def test_saving_and_loading_reproduces_every_output(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.train()(pixels())  # moves the statistics of the batch norms
    with torch.inference_mode():
        expected = tensors(model.eval()(pixels()))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_eupe_multitask.EupeMultiTaskConfig",
        "AutoModel": "modeling_eupe_multitask.EupeForMultiTask",
    }
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is EupeForMultiTask and again.config.heads == model.config.heads
    assert AutoConfig.from_pretrained(tmp_path).head_config("scene").id2label == {0: "in", 1: "out"}
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 64, "width": 64}
    with torch.inference_mode():
        assert_equal_outputs(tensors(again.eval()(pixels())), expected)
    assert "AutoModel.from_pretrained" in (tmp_path / "README.md").read_text()
    if family == "vit":
        torch.save(pixels(), tmp_path / "pixels.pt")
        command = [sys.executable, "-I", "-c", _ISOLATED, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert_equal_outputs(torch.load(tmp_path / "outputs.pt"), expected)


@FAMILIES
def test_encoder_checkpoint_gets_new_heads(family: str, tmp_path: Path) -> None:
    encoder = EupeModel(tiny_config(family))
    encoder.save_pretrained(tmp_path)
    model = EupeForMultiTask.from_pretrained(tmp_path, heads=HEADS)
    assert list(model.heads) == list(HEADS) and model.config.heads["defects"]["loss_weight"] == 0.5
    assert model.eupe.out_indices == ([1, 2, 3] if family == "vit" else [1, 2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(model.eupe.parameters(), encoder.parameters(), strict=True))
    with pytest.raises(ValueError, match="no head to run; the model has none: add_head adds one"):
        EupeForMultiTask.from_pretrained(tmp_path)(pixels())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(_only_a_head(model, tmp_path / "head"))
    with pytest.raises(ValueError, match="weights of the encoder"):
        EupeForMultiTask.from_pretrained(tmp_path, heads=HEADS)


def _only_a_head(model: EupeForMultiTask, folder: Path) -> Path:
    model.save_head("scene", folder)
    return folder / "model.safetensors"


def test_heads_come_and_go(tmp_path: Path) -> None:
    model = tiny("vit")
    with torch.inference_mode():
        before = tensors(model(pixels()))
        model.save_head("parts", tmp_path / "parts")
        model.remove_head("parts")
        assert model.eupe.out_indices == [2, 3] and "parts" not in model.config.heads
        assert {name for name, _ in model.named_parameters() if "parts" in name} == set()
        model.load_head("parts", tmp_path / "parts")
        model.load_head("same", tmp_path / "parts")
        after = tensors(model(pixels()))
        assert torch.equal(after["same"], before["parts"])
        assert_equal_outputs({name: after[name] for name in before}, before)
        model.task_model("depth").save_pretrained(tmp_path / "depth")  # of a complete model the head is taken
        model.load_head("again", tmp_path / "depth")
        assert torch.equal(tensors(model(pixels()))["again"], before["depth"])
    model.add_head("new", "segmentation", num_labels=4, out_indices=[0])
    with torch.inference_mode():
        assert tensors(model(pixels()))["new"].shape == (2, 4, 4, 6)
    weight = model.heads["new"].linear.conv.weight
    assert 0.005 < weight.std() < 0.02 and not model.heads["new"].linear.conv.bias.any()
    assert EupeMultiTaskConfig.from_dict(model.config.to_dict()).heads == model.config.heads
    # a head alone is not a model, and says so
    with pytest.raises(ValueError, match=r"lacks .* weights of the encoder"):
        EupeForSegmentation.from_pretrained(tmp_path / "parts")
    saved = {file.name for file in (tmp_path / "parts").iterdir()}
    assert saved == {"README.md", "config.json", "model.safetensors"}


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny("vit")
    model.save_head("parts", tmp_path / "parts")
    other = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config("vit", hidden_size=48)))
    with pytest.raises(ValueError, match="for another encoder: hidden_size is 32 there and 48 here"):
        other.load_head("parts", tmp_path / "parts")
    with pytest.raises(ValueError, match="a head 'parts' already"):
        model.load_head("parts", tmp_path / "parts")
    with pytest.raises(ValueError, match="a head 'parts' already"):
        model.add_head("parts", "depth")
    with pytest.raises(ValueError, match="named 'keys'"):
        model.add_head("keys", "depth")
    with pytest.raises(ValueError, match=r"letters, digits, '-' and '_', got 'a\.b'"):
        model.add_head("a.b", "depth")
    with pytest.raises(ValueError, match=r"must be one of classification, segmentation, .*, got 'pose'"):
        model.add_head("pose", "pose")
    with pytest.raises(ValueError, match="has num_labels; a depth head takes out_indices, head_dropout"):
        model.add_head("far", "depth", num_labels=3)
    with pytest.raises(ValueError, match=r"heads\['far'\] must be a dictionary .*, got 'depth'"):
        EupeMultiTaskConfig(heads={"far": "depth"})
    with pytest.raises(StrictDataclassError, match="num_labels must be at least 1"):
        model.add_head("far", "segmentation", num_labels=0)
    (tmp_path / "cut").mkdir()
    for file in (tmp_path / "parts").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(ValueError, match="damaged or was cut short"):
        model.load_head("far", tmp_path / "cut")
    with pytest.raises(ValueError, match="loss_weight'] must be a number of at least 0, got -1"):
        model.add_head("far", "depth", loss_weight=-1)
    EupeModel(tiny_config("vit")).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="holds no task head: it was saved from EupeModel"):
        model.load_head("far", tmp_path / "encoder")
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    (tmp_path / "parts" / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(ValueError, match=r"does not fit its own config.json: 2 .*linear\.conv\.bias"):
        model.load_head("far", tmp_path / "parts")
    assert list(model.heads) == list(model.config.heads) == list(HEADS)
    for call in (lambda: model(pixels(), tasks=["part"]), lambda: model.remove_head("part")):
        with pytest.raises(ValueError, match="no head part; the model has boxes, defects, depth, parts, scene"):
            call()
    with pytest.raises(ValueError, match="no head part; the model has"):
        model(pixels(), labels={"part": torch.zeros(2)})
    with pytest.raises(ValueError, match="labels must be a mapping from names of heads to labels, got Tensor"):
        model(pixels(), labels=torch.zeros(2))
    with pytest.raises(ValueError, match="tasks must be a list of names, got str"):
        model(pixels(), tasks="parts")


@FAMILIES
def test_loss_is_the_weighted_sum_over_the_tasks_that_have_labels(family: str) -> None:
    model, labels = tiny(family), all_labels()
    outputs = model(pixels(), labels=labels)
    losses = {name: prediction.loss for name, prediction in outputs.predictions.items()}
    single = {name: model.task_model(name)(pixels(), labels=labels[name]).loss for name in HEADS}
    for name in HEADS:
        torch.testing.assert_close(losses[name], single[name])
    expected = losses["boxes"] + losses["scene"] + losses["parts"] + 0.5 * losses["defects"] + losses["depth"]
    torch.testing.assert_close(outputs.loss, expected)
    some = model(pixels(), labels={"defects": labels["defects"]})
    torch.testing.assert_close(some.loss, 0.5 * losses["defects"])
    assert some.predictions["depth"].loss is None and model(pixels()).loss is None
    assert model(pixels(), labels=labels, tasks=["scene"]).loss == losses["scene"]


def test_images_without_labels_of_a_task_do_not_count() -> None:
    model, labels = tiny("vit"), all_labels(3)
    partial = {name: [values[0], None, values[2]] for name, values in labels.items()}
    found = model(pixels(3), labels=partial).predictions
    kept = {name: [values[0], values[2]] for name, values in labels.items()}
    chosen = model(pixels(3)[[0, 2]], labels=kept).predictions
    for name in HEADS:
        torch.testing.assert_close(found[name].loss, chosen[name].loss, msg=name)
    none = model(pixels(3), labels={name: [None] * 3 for name in HEADS})
    assert none.loss == 0 and none.loss.requires_grad
    with pytest.raises(ValueError, match="one entry per image, 3, got 2"):
        model(pixels(3), labels={"scene": [torch.tensor(1), None]})
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\), \(5, 5\)"):
        model(pixels(3), labels={"parts": [torch.zeros(4, 4), None, torch.zeros(5, 5)]})


@FAMILIES
def test_frozen_parts_stay_and_others_learn(family: str) -> None:
    model = tiny(family)
    model.freeze_backbone()
    model.freeze_head("parts")
    model.train()
    assert not model.heads["parts"].linear.batch_norm.training and model.heads["defects"].linear.batch_norm.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(pixels(), labels=all_labels()).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed} == {"boxes", "scene", "defects", "depth"}
    assert all(name.startswith("heads.") for name in changed)
    model.unfreeze_head("parts")
    model.unfreeze_backbone()
    assert model.heads["parts"].linear.batch_norm.training
    left = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert left == ({"eupe.encoder.embeddings.mask_token"} if family == "vit" else set())  # no head reads it


def test_trainer_trains_and_evaluates_all_tasks(tmp_path: Path) -> None:
    model = tiny("vit")
    data = [
        {"pixel_values": image, "labels": {name: values[i] for name, values in all_labels(8).items()}}
        for i, image in enumerate(pixels(8))
    ]

    def collate(rows: list[dict]) -> dict:
        labels = {name: [row["labels"][name] for row in rows] for name in HEADS}
        labels = {name: values if name == "boxes" else torch.stack(values) for name, values in labels.items()}
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}

    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, learning_rate=3e-3, report_to=[], use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True, activation_checkpointing=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, data_collator=collate)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    trainer.data_collator = lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
    predictions = trainer.predict(data).predictions
    assert predictions["scene"]["logits"].shape == (8, 2) and predictions["depth"]["predicted_depth"].shape == (
        8,
        4,
        6,
    )
    trainer.save_model(tmp_path / "saved")
    assert list(AutoModel.from_pretrained(tmp_path / "saved").heads) == list(HEADS)


@FAMILIES
def test_half_precision_compilation_and_gradient_checkpointing(family: str) -> None:
    model = tiny(family)
    with torch.inference_mode():
        expected = tensors(model(pixels()))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for name, tensor in tensors(compiled(pixels())).items():
            torch.testing.assert_close(tensor, expected[name])
        half = tiny(family).to(torch.bfloat16)
        half.add_head("new", "depth")
        found = tensors(half(pixels()))
        assert half.heads["new"].linear.conv.weight.dtype == torch.bfloat16
        assert all(
            torch.cosine_similarity(found[name].flatten().float(), t.flatten(), dim=0) > 0.99
            for name, t in expected.items()
        )
    model.train().activation_checkpointing_enable()
    outputs = model(pixels(), labels=all_labels(), output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()
    outputs.loss.backward()
    assert all(state.grad is not None and state.grad.any() for state in outputs.hidden_states)
    assert all(p.grad is not None for name, p in model.named_parameters() if "mask_token" not in name)
