# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The training script of a VLM as a user runs it: both stages, on drawn pictures, with tiny models, on the CPU."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from conftest import ROOT
from drawn_counts import QUESTION, save_parts, save_pictures
from hub_server import TOKEN, HubServer, use_hub
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlamaForCausalLM, pipeline

from eupe_hf import EupeLlavaForConditionalGeneration, EupeLlavaProcessor
from eupe_hf.lora import load_peft_model
from eupe_hf.training.vlm import VlmTrainer, parse_vlm


# The largest difference of weights of a resumed run and an unbroken one: they are the same computation.
RESUME_TOLERANCE = 1e-6
USUAL = {
    "--size": 64, "--batch_size": 8, "--per_device_train_batch_size": 8, "--dataloader_num_workers": 0,
    "--logging_steps": 1, "--disable_tqdm": True, "--use_cpu": True, "--bf16": False, "--save_strategy": "no",
    "--rank": 4,
}  # fmt: skip

Run = Callable[..., tuple[Path, str]]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, 32 pictures with conversations, and what stage 1 leaves."""
    folder = tmp_path_factory.mktemp("material")
    save_parts(folder)
    save_pictures(folder / "pictures", 32, seed=0)
    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        folder / "tower", folder / "text", image_size=64
    )
    for part in (model, processor):
        part.save_pretrained(folder / "stage1")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process and offline; gives its output folder and what it printed."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run_here(stage: int, output: str, *options: Any, offline: bool = True) -> tuple[Path, str]:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        main = runpy.run_path(str(ROOT / "examples" / "train_vlm.py"))["main"]
        start = {1: ["--vision", material / "tower", "--text", material / "text"], 2: ["--model", material / "stage1"]}
        usual = {**USUAL, "--dataset": material / "pictures" / "conversations.json", "--output_dir": tmp_path / output}
        capsys.readouterr()
        every = ["--stage", stage, *start[stage], *(part for option in usual.items() for part in option), *options]
        main([str(option) for option in every])
        return tmp_path / output, capsys.readouterr().out

    return run_here


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models of the runs, as they were saved."""
    models: list[torch.nn.Module] = []
    save = VlmTrainer.save_model

    def save_and_keep(self: VlmTrainer, *args: Any, **kwargs: Any) -> None:
        models.append(self.model)
        save(self, *args, **kwargs)

    monkeypatch.setattr(VlmTrainer, "save_model", save_and_keep)
    return models


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def changed_parts(before: Path, after: Path) -> set[str]:
    """Which of tower, projector, language model and head differ in any bit; all tensors are in both."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    parts = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
    return {next(p for p in parts if p in name) for name, tensor in new.items() if not torch.equal(tensor, old[name])}


@torch.no_grad()
def logits(model: Any, material: Path) -> torch.Tensor:
    """What a model makes of the question about the first three pictures."""
    processor = EupeLlavaProcessor.from_pretrained(material / "stage1")
    images = [Image.open(material / "pictures" / f"{i}.png") for i in range(3)]
    inputs = processor.apply_chat_template(
        [questions(image) for image in images], tokenize=True, return_dict=True, return_tensors="pt"
    )
    return model.eval()(**inputs).logits


def questions(image: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]


# ---- what learns ----


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
def test_batches_of_text_alone_train(
    stage: int, checkpointing: bool, run: Run, material: Path, tmp_path: Path
) -> None:
    saved = json.loads((material / "pictures" / "conversations.json").read_text())
    for row in saved[::2]:
        row.pop("image", None)
        row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>", "").strip()
    file = material / "pictures" / f"half-{stage}-{checkpointing}.json"
    file.write_text(json.dumps(saved))
    options = ("--dataset", file, "--batch_size", 1, "--per_device_train_batch_size", 1, "--max_steps", 8)
    lora = ("--lora", "both") if stage == 2 else ()
    folder, _ = run(stage, "out", *options, *lora, "--activation_checkpointing", checkpointing)
    assert len(losses(folder)) == 8 and all(loss > 0 for loss in losses(folder))


def test_stage_1_trains_the_projector_alone_by_the_paper(run: Run, material: Path, trained: list[Any]) -> None:
    folder, printed = run(1, "out", "--num_train_epochs", 3)
    assert "32 conversations to train on, 27 tokens on average." in printed
    assert changed_parts(material / "stage1", folder) == {"multi_modal_projector"}  # the same seed: the same start
    settings = json.loads((folder / "results.json").read_text())["settings"]
    expected = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0.03, "stage": 1, "steps": 12}
    assert {name: settings[name] for name in expected} == expected
    assert losses(folder)[-1] < losses(folder)[0]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(logits(model, material), logits(trained[-1], material))
    assert AutoProcessor.from_pretrained(folder).image_tokens(64, 64) == 16
    talk = pipeline("image-text-to-text", model=str(folder))
    answer = talk(text=questions(Image.open(material / "pictures" / "0.png")), max_new_tokens=2)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"
    assert {"curve.png", "results.json", "README.md"} <= {file.name for file in folder.iterdir()}


def test_stage_2_leaves_the_tower_bit_equal(run: Run, material: Path) -> None:
    folder, _ = run(2, "out", "--learning_rate", 1e-3, "--activation_checkpointing", False)
    assert changed_parts(material / "stage1", folder) == {"multi_modal_projector", "language_model", "lm_head"}
    recomputed, _ = run(2, "again", "--learning_rate", 1e-3, "--activation_checkpointing", True)
    assert losses(recomputed) == pytest.approx(losses(folder), abs=1e-6)


@pytest.mark.parametrize("lora", ["language", "both"])
def test_adapter_reloads_exactly_with_its_projector(
    run: Run, material: Path, trained: list[Any], capsys: pytest.CaptureFixture[str], lora: str
) -> None:
    folder, _ = run(2, "out", "--lora", lora, "--learning_rate", 1e-2, "--projector_learning_rate", 1e-3)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert not (folder / "model.safetensors").exists()
    assert any("vision_tower" in name for name in tensors) == (lora == "both")
    assert sum("multi_modal_projector" in name for name in tensors) == 4
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors if "language_model" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    model = AutoModelForImageTextToText.from_pretrained(folder)
    found = logits(model, material)
    assert torch.equal(found, logits(trained[-1], material))
    base = AutoModelForImageTextToText.from_pretrained(material / "stage1")
    assert (logits(base, material) - found).abs().max() > 1e-2
    start = load_file(material / "stage1" / "model.safetensors")["model.multi_modal_projector.linear_1.weight"]
    assert not torch.equal(tensors["base_model.model.model.multi_modal_projector.linear_1.weight"], start)
    talk = pipeline("image-text-to-text", model=str(folder))
    assert isinstance(talk.model, EupeLlavaForConditionalGeneration)
    with pytest.raises(SystemExit):
        run(2, "more", "--model", folder)
    assert "is an adapter: give a whole model" in capsys.readouterr().err
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and "fair-noncommercial" in card.data.license_name


def test_merged_adapter_is_an_ordinary_model(run: Run, material: Path, trained: list[Any]) -> None:
    folder, _ = run(2, "out", "--lora", "both", "--merge", "--learning_rate", 1e-2)
    assert not (folder / "adapter_config.json").exists()
    model = EupeLlavaForConditionalGeneration.from_pretrained(folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model, material), logits(trained[-1], material))
    adapter, _ = run(2, "adapter", "--lora", "both", "--learning_rate", 1e-2)
    later = load_peft_model(str(adapter)).merge_and_unload()
    assert torch.equal(logits(later, material), logits(model, material))
    parts = changed_parts(material / "stage1", folder)
    assert parts == {"vision_tower", "multi_modal_projector", "language_model"}


def test_what_learns_is_float32_and_saved_as_it_came(
    run: Run, material: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EupeLlavaForConditionalGeneration.from_pretrained(material / "stage1").to(torch.bfloat16)
    model.save_pretrained(material / "half")
    EupeLlavaProcessor.from_pretrained(material / "stage1").save_pretrained(material / "half")
    LlamaForCausalLM.from_pretrained(material / "text", dtype="bfloat16").save_pretrained(material / "half_text")
    AutoTokenizer.from_pretrained(material / "text").save_pretrained(material / "half_text")
    seen: dict[str, set[torch.dtype]] = {}
    step = VlmTrainer.training_step

    def step_and_look(self: VlmTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        for name, parameter in model.named_parameters():
            if "original_module" not in name:  # peft's copy of the projector as it was, in no use
                seen.setdefault("learns" if parameter.requires_grad else "frozen", set()).add(parameter.dtype)
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(VlmTrainer, "training_step", step_and_look)
    half = ["--model", material / "half"]
    joined = ["--text", material / "half_text", "--learning_rate", 1e-2]
    for stage, options in ((1, joined), (2, half), (2, [*half, "--lora", "language"])):
        seen.clear()
        folder, _ = run(stage, f"out{len(trained)}", "--bf16", True, *options)
        assert seen == {"learns": {torch.float32}, "frozen": {torch.bfloat16}}
        saved = load_file(next(folder.glob("*model.safetensors")))
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
        kept = extract_model_from_parallel(trained[-1], keep_fp32_wrapper=False)  # without the Trainer's autocast
        assert torch.equal(logits(loaded, material), logits(kept, material))


# ---- steps ----


@pytest.mark.slow
def test_accumulated_batches_and_several_processes_give_the_same_curve(
    run: Run, material: Path, tmp_path: Path
) -> None:
    # answers of one word and of six: the loss is an average over words, not over batches
    records = json.loads((material / "pictures" / "conversations.json").read_text())
    for record in records[::3]:
        record["conversations"][1]["value"] = "2 red squares and 3 discs"
    uneven = material / "pictures" / "uneven.json"
    uneven.write_text(json.dumps(records))
    options = ["--dataset", uneven, "--max_steps", 4, "--learning_rate", 1e-3]
    whole, _ = run(2, "whole", *options)
    parts, _ = run(2, "parts", *options, "--per_device_train_batch_size", 2)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert max((found[name] - tensor).abs().max() for name, tensor in expected.items()) < 1e-4
    two = tmp_path / "two"
    usual = [part for option in USUAL.items() for part in option]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        ROOT / "tests" / "ddp_on_cpu.py", ROOT / "examples" / "train_vlm.py",
        "--stage", 2, "--model", material / "stage1", *usual, *options, "--output_dir", two,
        "--per_device_train_batch_size", 2, "--ddp_backend", "gloo",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("DDP wrappers: 1 made, 0 left") == 2
    assert losses(two) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="full", marks=pytest.mark.slow),
        pytest.param(["--lora", "both", "--dropout", 0.2], id="lora"),
    ],
)
def test_resumed_run_ends_where_an_unbroken_one_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: list[Any]
) -> None:
    # killed in the second epoch, which has an order of its own
    options = [*options, "--max_steps", 7, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 5]
    options += ["--learning_rate", 1e-3]
    whole, _ = run(2, "whole", *options)
    step, calls = VlmTrainer.training_step, []

    def killed(self: VlmTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VlmTrainer, "training_step", killed)
        run(2, "broken", *options)
    broken, _ = run(2, "broken", *options, "--resume_from_checkpoint", "last")
    assert losses(broken) == pytest.approx(losses(whole), abs=RESUME_TOLERANCE) and len(losses(whole)) == 7
    file = "adapter_model.safetensors" if "--lora" in options else "model.safetensors"
    expected, found = (load_file(folder / file) for folder in (whole, broken))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=RESUME_TOLERANCE, msg=name)
    start = load_file(broken / "checkpoint-2" / file)
    assert any((start[name] - tensor).abs().max() > 1e-4 for name, tensor in expected.items())  # it did go on


# ---- what is left, and what is refused ----


def test_held_out_loss_and_card_say_how_it_was_made(run: Run, material: Path) -> None:
    folder, printed = run(2, "out", "--held_out", 0.25)
    results = json.loads((folder / "results.json").read_text())
    assert results["num_examples"] == 8 and results["split"] == "0.25 of train" and "24 conversations" in printed
    model = EupeLlavaForConditionalGeneration.from_pretrained(folder)
    assert model.config.vision_config.image_size == 64 and results["metrics"].keys() == {"loss"}
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-text-to-text" and "AutoModelForImageTextToText" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [results["metrics"]["loss"]]
    assert "| learning rate | 2e-05 |" in card.text and "| batch size | 8 |" in card.text
    for file in ("README.md", "results.json"):
        assert str(material.parent) not in (folder / file).read_text()  # no path of this machine


def test_pushed_model_loads_from_the_hub(run: Run, material: Path, tmp_path: Path) -> None:
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        folder, _ = run(2, "out", "--max_steps", 1, "--push_to_hub", "--hub_model_id", "me/vlm", offline=False)
        files = server.files("me/vlm")
        needed = {
            "model.safetensors",
            "config.json",
            "processor_config.json",
            "modeling_eupe_llava.py",
            "results.json",
        }
        assert needed <= files.keys() and not any(name.startswith("checkpoint") for name in files)
        card = ModelCard(files["README.md"].decode())
        assert card.data.license_name == "fair-noncommercial-research-license" and "## Recipe" in card.text
        found = AutoModelForImageTextToText.from_pretrained("me/vlm")
        assert AutoProcessor.from_pretrained("me/vlm").image_token == "<image>"
    here = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(logits(found, material), logits(here, material))


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        (1, ["--model", "stage1"], "Give either --text, a language model to join with --vision, or --model, a VLM."),
        (1, ["--lora", "language"], "--lora requires --stage 2"),
        (1, ["--batch_size", 12], "--batch_size 12 must be a multiple of the 8 examples"),
        (1, ["--dataset", "nowhere.json"], "The data set nowhere.json cannot be loaded"),
        (1, ["--image_folder", "nowhere"], "--image_folder nowhere is not a folder."),
        (1, ["--max_length", 20], "None of 32 rows can be used. Row 0, id 'picture 0' has 27 tokens, more than 20."),
        (2, ["--merge"], "--merge requires --lora"),
        (2, ["--rank", 0, "--lora", "both"], "--rank must be at least 1"),
        (2, ["--model", "./nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_one_sentence_before_the_first_step(
    run: Run, capsys: pytest.CaptureFixture[str], stage: int, options: list[Any], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(stage, "none", *options)
    assert exit_.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_script_is_short_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "train_vlm.py"
    script = runpy.run_path(str(path))
    with pytest.raises(SystemExit) as exit_:
        script["main"](["--stage", "2", "--lora", "both", "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and script["__doc__"].splitlines()[0] in shown
    assert len(path.read_text().splitlines()) < 200
    options = {"--image_folder", "--image-folder", "--max_length", "--scale_factor", "--strict", "--size"}
    assert options <= set(shown.replace(",", " ").split())


@pytest.mark.parametrize(
    ("options", "rates", "batch_size"),
    [
        (["--stage", "1", "--text", "t"], (1e-3, None), 256),
        (["--stage", "2", "--model", "m"], (2e-5, None), 128),
        (["--stage", "2", "--model", "m", "--lora", "language"], (2e-4, 2e-5), 128),
    ],
)
def test_defaults_are_those_of_llava_1_5(tmp_path: Path, options: list[str], rates: Any, batch_size: int) -> None:
    options += ["--dataset", "d", "--output_dir", str(tmp_path / "out"), "--use_cpu", "True", "--bf16", "False"]
    model, _, args = parse_vlm("", options)
    assert (args.learning_rate, args.projector_learning_rate) == rates
    assert args.gradient_accumulation_steps * args.train_batch_size * args.world_size == batch_size
    assert (args.warmup_steps, args.weight_decay, args.num_train_epochs, model.size) == (0.03, 0.0, 1, 384)
    assert args.lr_scheduler_type == "cosine" and args.optim.startswith("adamw")
    assert (model.rank, model.alpha, model.dropout) == (128, 128.0, 0.05)


def test_alpha_of_llava_1_5_is_an_option(tmp_path: Path) -> None:
    options = ["--stage", "2", "--model", "m", "--lora", "language", "--dataset", "d", "--alpha", "256", "--use_cpu"]
    model, _, _ = parse_vlm("", [*options, "--bf16", "False", "--output-dir", str(tmp_path / "out")])
    assert (model.rank, model.alpha) == (128, 256.0)


@pytest.mark.slow
def test_examples_of_a_step_are_of_one_length(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    turns = [(" and 3" * int(extra), str(i)) for i, extra in enumerate(noise.integers(0, 40, 256))]
    records = [{"conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": f"2{more}"}], "id": i}
               for more, i in turns]  # fmt: skip
    (tmp_path / "texts.json").write_text(json.dumps(records))
    shares: list[float] = []
    step = VlmTrainer.training_step

    def step_and_look(self: VlmTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shares.append(float(inputs["attention_mask"].float().mean()))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(VlmTrainer, "training_step", step_and_look)
    used = []
    for strategy in ("group_by_length", "random"):
        shares.clear()
        run(2, strategy, "--dataset", tmp_path / "texts.json", "--train_sampling_strategy", strategy)
        used.append(np.mean(shares))
        assert len(shares) == 32
    assert used[0] > 0.8 and used[0] > used[1] + 0.15, used  # of the tokens of a batch, those that are no padding


def test_adapter_without_a_base_is_refused(material: Path, tmp_path: Path, capsys: Any) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "train_vlm.py"))["main"]
    with pytest.raises(SystemExit):
        main(["--stage", "2", "--text", str(material / "text"), "--lora", "language", "--dataset", "none",
              "--output_dir", str(tmp_path / "out"), "--use_cpu", "True", "--bf16", "False"])  # fmt: skip
    assert re.search("An adapter needs a base .* --model .* or --merge", capsys.readouterr().err)


# ---- the proof that the picture is used ----


def accuracy(folder: Path, images: list[Image.Image]) -> float:
    """Share of pictures of which the generated answer is right: picture i has i % 5 red squares."""
    model, processor = (cls.from_pretrained(folder) for cls in (AutoModelForImageTextToText, AutoProcessor))
    inputs = processor.apply_chat_template(
        [questions(image) for image in images],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    )  # fmt: skip
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(output, skip_special_tokens=True)
    return float(np.mean([answer.strip() == str(i % 5) for i, answer in enumerate(answers)]))


@pytest.mark.slow
def test_both_stages_teach_counting_from_pictures(run: Run, tmp_path: Path) -> None:
    """Random tower, random language model: what is learned, is learned here, and from the pictures."""
    data = save_pictures(tmp_path / "many", 2000, seed=1)
    save_pictures(tmp_path / "held_out", 200, seed=2)
    held_out = [Image.open(tmp_path / "held_out" / f"{i}.png") for i in range(200)]
    options = ["--dataset", data, "--batch_size", 32, "--per_device_train_batch_size", 32, "--logging_steps", 10]
    options += ["--activation_checkpointing", False]
    first, _ = run(1, "first", *options, "--learning_rate", 3e-3)
    second, _ = run(2, "second", "--model", first, *options, "--learning_rate", 3e-3, "--num_train_epochs", 5)
    assert changed_parts(first, second) == {"multi_modal_projector", "language_model", "lm_head"}
    noise = np.random.default_rng(3)
    noisy = [Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in held_out]
    right, blind, before = accuracy(second, held_out), accuracy(second, noisy), accuracy(first, held_out)
    # 1.0, 0.17 and 0.0 when measured; chance is 0.2, five numbers that are equally often right
    assert right >= 0.9 and blind <= 0.3 and before <= 0.3, (right, blind, before)
