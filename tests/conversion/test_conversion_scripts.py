# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The scripts in `conversion/`, run as a user runs them: what they write and print, and their exit codes."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import (
    GOLDEN,
    ROOT,
    Finished,
    assert_raw_came_back,
    assert_same_bits,
    golden_path,
    published_state,
    random_state,
    requires_shared,
    run_script,
    tiny_config,
)
from hub_server import TOKEN, HubServer, hub_environment
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

from eupe_hf import EupeForSegmentation, EupeModel, variant_config
from eupe_hf.conversion.checkpoints import (
    PROJECTOR_FILE,
    Checkpoint,
    load_checkpoint,
    read_state_dict,
    save_model_folder,
)
from eupe_hf.conversion.layouts import to_eupe
from eupe_hf.variants import VARIANTS


CONVERT, BACK, VERIFY = "convert_eupe_to_hf.py", "convert_hf_to_eupe.py", "verify_conversion.py"
PROJECTORS = {"projectors.proxy.cls.0.weight": torch.full((6, 4), 0.25)}
LICENSE = "fair-noncommercial-research-license"


def run_process(script: str, *arguments: str | Path, environment: dict[str, str] | None = None) -> Finished:
    """Run a script in a process of its own, which takes seconds."""
    environment = environment or {**os.environ, "HF_HUB_OFFLINE": "1"}
    source = f"{ROOT / 'src'}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    process = subprocess.run(
        [sys.executable, ROOT / "conversion" / script, *arguments],
        env={**environment, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Finished(process.returncode, process.stdout, process.stderr)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Finished]:
    """Run a script as its own main program, but in this process."""
    return lambda script, *arguments: run_script(ROOT / "conversion" / script, *arguments, folder=tmp_path)


Run = Callable[..., Finished]


def one_line(process: Finished) -> str:
    """The message of a run that failed with code 2: the only line on stderr, and nothing on stdout."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    lines = [line for line in process.stderr.splitlines() if not re.search(r"\d+%\|", line)]  # progress bars
    assert len(lines) == 1, process.stderr
    return lines[0]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw checkpoint of eupe-t with projectors."""
    path = tmp_path_factory.mktemp("raw") / "EUPE-ViT-T.pt"
    torch.save({**published_state("eupe-t"), **PROJECTORS}, path)
    return path


@pytest.fixture(scope="module")
def converted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the script makes from it, with the projectors, and what it prints."""
    folder = tmp_path_factory.mktemp("converted") / "eupe-t"
    process = run_process(CONVERT, "--checkpoint", raw, "--variant", "eupe-t", "--output", folder, "--keep-projectors")
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


# ---- there and back ----


def test_conversion_says_what_it_did(converted: tuple[Path, str], raw: Path) -> None:
    folder, printed = converted
    lines = printed.splitlines()
    assert lines[0] == f"Read {raw}: eupe-t, layout raw."
    assert lines[1] == "Compared 211 tensors, 5,489,856 values: all equal to the source (max abs difference 0)."
    assert lines[2] == f"1 tensors of the distillation adapters: kept in {PROJECTOR_FILE}."
    assert LICENSE in lines[3]
    assert lines[4] == f"Done: EupeModel.from_pretrained({str(folder)!r}) loads it."
    assert len(lines) == 5


def test_converted_folder_loads_with_the_source_weights(converted: tuple[Path, str]) -> None:
    folder, _ = converted
    expected, _ = to_eupe(published_state("eupe-t"), variant_config("eupe-t"), "raw")
    assert_same_bits(EupeModel.from_pretrained(folder).state_dict(), expected)
    assert_same_bits(load_file(folder / PROJECTOR_FILE), PROJECTORS)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_way_back_gives_the_published_file(
    run: Run, suffix: str, converted: tuple[Path, str], raw: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"back{suffix}"
    process = run(BACK, "--checkpoint", converted[0], "--output", output)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "Compared 211 tensors, 5,489,856 values: all equal to the source (max abs difference 0).",
        "1 tensors of the distillation adapters: written with the rest.",
        f"Done: {output} holds the encoder in layout raw.",
    ]
    assert_raw_came_back(read_state_dict(output), read_state_dict(raw))


def test_way_to_dinov3_and_from_there_to_ours(run: Run, converted: tuple[Path, str], tmp_path: Path) -> None:
    dinov3, ours = tmp_path / "dinov3", tmp_path / "ours"
    process = run(BACK, "--checkpoint", converted[0], "--output", dinov3, "--layout", "dinov3")
    assert process.returncode == 0, process.stderr
    assert "1 tensors of the distillation adapters: left out, this layout has no place for them." in process.stdout
    assert sorted(path.name for path in dinov3.iterdir()) == ["config.json", "model.safetensors"]
    process = run(CONVERT, "--checkpoint", dinov3, "--output", ours)
    assert process.returncode == 0, process.stderr
    assert f"Read {dinov3}: eupe-t, layout dinov3." in process.stdout
    assert "distillation adapters" not in process.stdout
    assert_same_bits(load_checkpoint(ours).state, load_checkpoint(converted[0]).state)


def test_projectors_are_dropped_by_default_and_it_says_so(run: Run, raw: Path, tmp_path: Path) -> None:
    process = run(CONVERT, "--checkpoint", raw, "--output", tmp_path / "ours")
    assert (
        "1 tensors of the distillation adapters: dropped (eupe convert --keep-projectors keeps them)."
        in process.stdout
    )
    assert not (tmp_path / "ours" / PROJECTOR_FILE).exists()


@pytest.mark.parametrize("spelling", ["--keep-projectors", "--keep_projectors"])
def test_options_of_two_words_have_two_spellings(run: Run, raw: Path, spelling: str, tmp_path: Path) -> None:
    process = run(CONVERT, "--checkpoint", raw, "--output", tmp_path / "my_model", spelling)
    assert process.returncode == 0, process.stderr
    assert_same_bits(load_file(tmp_path / "my_model" / PROJECTOR_FILE), PROJECTORS)


def test_conversion_that_fails_its_proof_is_a_table_and_code_1(
    run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_damaged(source: Checkpoint, output: Path, *arguments: object) -> Path:
        state = {**source.state, "norm.weight": source.state["norm.weight"] + 0.5}
        return save_model_folder(dataclasses.replace(source, state=state), output, *arguments)

    monkeypatch.setattr("eupe_hf.conversion.convert.save_model_folder", save_damaged)
    process = run(CONVERT, "--checkpoint", raw, "--output", tmp_path / "ours")
    assert (process.returncode, process.stdout) == (1, "")
    assert re.search(r"norm\.weight +192 +5\.00e-01 +TOO LARGE", process.stderr)
    assert process.stderr.endswith(f"{tmp_path / 'ours'} would differ from its source: nothing was written.\n")
    assert not (tmp_path / "ours").exists()


def test_encoder_of_another_size_is_converted_from_its_folder(run: Run, tmp_path: Path) -> None:
    config = tiny_config("convnext")
    save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "tiny")
    process = run(CONVERT, "--checkpoint", tmp_path / "tiny", "--output", tmp_path / "again")
    assert process.returncode == 0, process.stderr
    assert f"Read {tmp_path / 'tiny'}: an encoder of another size than the six, layout eupe." in process.stdout
    assert_same_bits(load_checkpoint(tmp_path / "again").state, random_state(config))


# ---- heads ----


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw segmentation head that reads four blocks of eupe-t, as upstream's evaluation code saves it."""
    state = {
        "batchnorm_layer.num_batches_tracked": torch.tensor(100),
        "conv.weight": torch.randn(150, 768, 1, 1),
        "conv.bias": torch.randn(150),
    }
    state |= {f"batchnorm_layer.{part}": 1 + torch.rand(768) for part in ("weight", "bias")}
    state |= {f"batchnorm_layer.running_{part}": 1 + torch.rand(768) for part in ("mean", "var")}
    path = tmp_path_factory.mktemp("head") / "head.pt"
    torch.save({"model": {f"segmentation_model.1.{k}": t for k, t in state.items()}, "optimizer": {"lr": 1}}, path)
    return path


def test_head_is_converted_with_its_encoder_and_back(run: Run, raw: Path, head: Path, tmp_path: Path) -> None:
    folder, encoder, back = tmp_path / "ade20k", tmp_path / "back.pt", tmp_path / "head.pt"
    arguments = ["--checkpoint", raw, "--head", head, "--task", "segmentation", "--output", folder]
    process = run(CONVERT, *arguments, "--layers", "2", "5", "8", "11")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[1] == f"Read {head}: a segmentation head, from 768 channels of layers 2, 5, 8, 11 to 150."
    assert lines[2] == "Compared 218 tensors, 5,608,279 values: all equal to the source (max abs difference 0)."
    assert lines[-1] == f"Done: EupeForSegmentation.from_pretrained({str(folder)!r}) loads it."
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(model) is EupeForSegmentation and model.config.num_labels == 150
    process = run(BACK, "--checkpoint", folder, "--output", encoder, "--head", back)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "Compared 218 tensors, 5,608,279 values: all equal to the source (max abs difference 0).",
        f"7 tensors of the head: written to {back}.",
        f"Done: {encoder} holds the encoder in layout raw.",
    ]
    published = {key: tensor for key, tensor in read_state_dict(raw).items() if key not in PROJECTORS}
    assert_raw_came_back(read_state_dict(encoder), published)
    expected = torch.load(head, weights_only=True)["model"]
    assert_same_bits(torch.load(back, weights_only=True)["model"], expected)
    # without --head, only the encoder is written, and the script says so
    process = run(BACK, "--checkpoint", folder, "--output", tmp_path / "dinov3", "--layout", "dinov3")
    assert "7 tensors of the head: left out (--head FILE writes them)." in process.stdout
    process = run(CONVERT, "--checkpoint", folder, "--output", tmp_path / "encoder")
    assert "7 tensors of the head of a task model: dropped." in process.stdout
    assert_same_bits(load_checkpoint(tmp_path / "encoder").state, load_checkpoint(raw).state)


def test_unusable_head_is_one_line_and_code_2(run: Run, raw: Path, head: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", raw, "--output", tmp_path / "output", "--head"]
    message = one_line(run(CONVERT, *arguments, head, "--task", "segmentation"))
    assert f"{head} reads 768 channels; layers 11 of this encoder (vit, width 192) give 192. 4 layers" in message
    assert message.endswith("would fit, for example 2 5 8 11.")
    message = one_line(run(CONVERT, *arguments, head, "--task", "depth", "--layers", "2", "5", "8", "11"))
    assert f"{head} holds a head for segmentation ('conv.weight'), not for depth" in message
    message = one_line(run(CONVERT, *arguments, head, "--task", "segmentation", "--layers", "12"))
    assert "from 0 to 11 in ascending order, got 12." in message
    assert "No checkpoint at" in one_line(run(CONVERT, *arguments, tmp_path / "no.pt", "--task", "depth"))
    message = one_line(run(BACK, "--checkpoint", raw, "--output", tmp_path / "back.pt", "--head", tmp_path / "h.pt"))
    assert "this is an encoder without a head" in message
    assert not list(tmp_path.iterdir())


# ---- verifying ----


@requires_shared
@pytest.mark.parametrize(("name", "tolerance", "count"), [("eupe-t", "1e-5", 70), ("eupe-convnext-t", "2e-5", 80)])
def test_verification_against_recorded_outputs_passes(
    run: Run, name: str, tolerance: str, count: int, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "raw.pt"
    torch.save(published_state(name), checkpoint)
    golden = ["--golden", golden_path(name), "--variant", name, "--tolerance", tolerance]
    process = run(VERIFY, "--checkpoint", checkpoint, *golden)
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].split() == ["array", "shape", "max", "abs", "error"]
    assert lines[-1].startswith(f"{count} of {count} arrays are the same within {float(tolerance):g}; the largest")
    assert len(lines) == count + 2


@requires_shared
def test_verification_of_a_perturbed_checkpoint_fails(tmp_path: Path) -> None:
    state = published_state("eupe-t")
    state["blocks.7.mlp.fc2.bias"][3] += 1e-2
    torch.save(state, tmp_path / "perturbed.pt")
    process = run_process(VERIFY, "--checkpoint", tmp_path / "perturbed.pt", "--golden", golden_path("eupe-t"))
    assert process.returncode == 1, process.stderr
    rows = {line.split()[0]: "TOO LARGE" in line for line in process.stdout.splitlines()}
    assert rows["1x256x256/cls"]
    assert rows["1x256x256/layer8/map"]
    assert not rows["1x256x256/layer5/map"]  # earlier blocks did not change
    assert "Traceback" not in process.stderr


def test_verification_against_another_layout_finds_no_difference(
    run: Run, converted: tuple[Path, str], raw: Path
) -> None:
    process = run(VERIFY, "--checkpoint", converted[0], "--against", raw, "--tolerance", "0")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith(
        "60 of 60 arrays are the same within 0; the largest error is 0.0"
    )


def test_verification_against_a_perturbed_checkpoint_fails(run: Run, raw: Path, tmp_path: Path) -> None:
    state = published_state("eupe-t")
    state["norm.bias"][0] += 1e-2
    save_file(state, tmp_path / "perturbed.safetensors")
    process = run(VERIFY, "--checkpoint", raw, "--against", tmp_path / "perturbed.safetensors")
    assert process.returncode == 1, process.stderr
    assert re.search(r"pooler_output +1x192 +1\.00e-02 +TOO LARGE", process.stdout)
    assert "the largest error is 1.00e-02" in process.stdout


# ---- what goes wrong ----


@pytest.mark.parametrize("script", [CONVERT, BACK, VERIFY])
def test_missing_checkpoint_is_one_line_and_code_2(script: str, tmp_path: Path) -> None:
    second = ["--against", tmp_path] if script == VERIFY else ["--output", tmp_path / "output"]
    message = one_line(run_process(script, "--checkpoint", tmp_path / "nothing.pt", *second))
    assert message.startswith(f"{script}: No checkpoint at {tmp_path / 'nothing.pt'}. Give the file")
    assert not (tmp_path / "output").exists()


def test_unusable_input_is_one_line_and_code_2(run: Run, raw: Path, tmp_path: Path) -> None:
    output = ["--output", tmp_path / "output"]
    assert "holds eupe-t, a ViT of width 192" in one_line(
        run(CONVERT, "--checkpoint", raw, "--variant", "eupe-s", *output)
    )
    assert "Did you mean 'eupe-t'" in one_line(run(CONVERT, "--checkpoint", raw, "--variant", "eupe-tt", *output))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(raw.read_bytes()[:100_000])
    assert "(100,000 bytes) cannot be read as a .pt checkpoint" in one_line(run(CONVERT, "--checkpoint", cut, *output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt"]


def test_output_that_cannot_be_replaced_is_one_line_and_code_2(run: Run, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = one_line(run(CONVERT, "--checkpoint", raw, "--output", tmp_path))
    assert f"{tmp_path} holds other files (notes.txt)" in message
    message = one_line(run(BACK, "--checkpoint", raw, "--output", tmp_path))
    assert f"{tmp_path} is a folder; give a file name" in message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_unusable_reference_is_one_line_and_code_2(run: Run, raw: Path, tmp_path: Path) -> None:
    message = one_line(run(VERIFY, "--checkpoint", raw, "--golden", tmp_path / "golden.safetensors"))
    assert message == f"{VERIFY}: No file with recorded outputs at {tmp_path / 'golden.safetensors'}."
    message = one_line(run(VERIFY, "--checkpoint", raw, "--golden", raw))
    assert "EUPE-ViT-T.pt is not a safetensors file" in message
    config = tiny_config("vit")
    save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "tiny")
    message = one_line(run(VERIFY, "--checkpoint", raw, "--against", tmp_path / "tiny"))
    assert "The models have different shapes: last_hidden_state of 1x256x256" in message


@requires_shared
def test_recorded_outputs_of_another_model_are_one_line_and_code_2(run: Run, raw: Path) -> None:
    message = one_line(run(VERIFY, "--checkpoint", raw, "--golden", GOLDEN / "eupe_vits16.safetensors"))
    assert "holds outputs of another model" in message
    assert "this vit of width 192 gives (1, 192)" in message


USAGE = {
    "nothing to compare with": (VERIFY, ["--checkpoint", "x"], "one of the arguments --golden --against is required"),
    "two references": (VERIFY, ["--checkpoint", "x", "--golden", "y", "--against", "z"], "not allowed with argument"),
    "tolerance": (
        VERIFY,
        ["--checkpoint", "x", "--against", "y", "--tolerance", "-1"],
        "--tolerance must be 0 or more",
    ),
    "private without push": (
        CONVERT,
        ["--checkpoint", "x", "--output", "y", "--private"],
        "it needs --push-to-hub",
    ),
    "head without task": (CONVERT, ["--checkpoint", "x", "--output", "y", "--head", "h"], "--head needs --task"),
    "layers without head": (
        CONVERT,
        ["--checkpoint", "x", "--output", "y", "--layers", "2", "5"],
        "--task and --layers describe a head; they need --head FILE",
    ),
    "task": (CONVERT, ["--checkpoint", "x", "--output", "y", "--head", "h", "--task", "vqa"], "invalid choice: 'vqa'"),
    "one file for two": (BACK, ["--checkpoint", "x", "--output", "y", "--head", "y"], "must be two files"),
    "layout": (BACK, ["--checkpoint", "x", "--output", "y", "--layout", "timm"], "invalid choice: 'timm'"),
}


@pytest.mark.parametrize(("script", "arguments", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_explained_with_code_2(run: Run, script: str, arguments: list[str], message: str) -> None:
    process = run(script, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith(f"usage: {script}")
    assert message in process.stderr


@pytest.mark.parametrize("script", [CONVERT, BACK, VERIFY])
def test_help_has_an_example_of_itself(run: Run, script: str) -> None:
    process = run(script, "--help")
    assert process.returncode == 0
    assert f"example:\n  python conversion/{script} --checkpoint" in process.stdout
    if script == CONVERT:
        assert all(name in process.stdout for name in VARIANTS)


# ---- pushing ----


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


def test_push_uploads_model_processor_and_licence(server: HubServer, raw: Path, tmp_path: Path) -> None:
    environment = hub_environment(server, tmp_path / "home", TOKEN)
    process = run_process(
        CONVERT, "--checkpoint", raw, "--output", tmp_path / "ours", "--push-to-hub", "tester/eupe-t", "--private",
        environment=environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[-2] == "Pushed model and image processor to tester/eupe-t."
    assert LICENSE in lines[-3]
    assert lines[-1].startswith("Done: ")
    files = server.files("tester/eupe-t")
    code = {f"{name}.py" for name in ("modeling_eupe", "modeling_eupe_vit", "configuration_eupe")}
    assert set(files) >= {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", *code}
    assert len(server.repos["tester/eupe-t"].commits) == 2  # one creates the repository, one has all files
    assert files["model.safetensors"] == (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert f"license_name: {LICENSE}" in files["README.md"].decode()
    assert server.repos["tester/eupe-t"].private


def test_push_without_a_token_is_one_line_and_code_2(server: HubServer, raw: Path, tmp_path: Path) -> None:
    environment = hub_environment(server, tmp_path / "home")
    arguments = ["--checkpoint", raw, "--output", tmp_path / "ours", "--push-to-hub", "tester/eupe-t"]
    process = run_process(CONVERT, *arguments, environment=environment)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "401" in process.stderr
    assert "Done" not in process.stdout
    assert load_checkpoint(tmp_path / "ours").variant is VARIANTS["eupe-t"]  # the converted folder stays


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_interrupts_and_closed_pipes_end_without_a_word(error: type[BaseException], code: int) -> None:
    program = f"from command_line import Parser\nwith Parser(None, '').exit_codes():\n    raise {error.__name__}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT / "conversion")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
