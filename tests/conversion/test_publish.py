# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""conversion/publish.py against a Hub on this machine: what it uploads, refuses, and leaves alone."""

import importlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import peft
import pytest
import torch
from conftest import ROOT, random_state
from hub_server import TOKEN, UPLOAD_STEPS, HubServer, use_hub
from huggingface_hub import ModelCard
from modeling_common import randomise, tiny_config
from published import SAVED_FILES, checkpoint
from transformers import AutoImageProcessor, AutoModel
from vlm_common import make_vlm

from eupe_hf import EupeForImageClassification, EupeModel, variant_config
from eupe_hf.conversion.layouts import to_eupe
from eupe_hf.lora import lora_config
from eupe_hf.staging import scratch_folder


REPO = "me/mine"
Publish = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A stand-in Hub to which this process is logged in."""
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        yield server


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it imports its neighbour."""
    monkeypatch.syspath_prepend(ROOT / "conversion")
    return importlib.import_module("publish")


@pytest.fixture
def publish(script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Run the script. Returns the exit code, stdout, and the message on stderr, which is its last line."""
    monkeypatch.setattr(sys, "argv", ["publish.py"])

    def run(*arguments: str | Path, repo: str = REPO) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = script.main([*map(str, arguments), "--repo", repo])
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        messages = re.findall(r"publish\.py: (.+)", captured.err)  # a progress bar may stand in the same line
        assert len(messages) <= 1 and captured.err.endswith("".join(f"{message}\n" for message in messages))
        return code, captured.out, "".join(messages)

    return run


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the client's waits between retries instead of sitting them out."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved classifier, and what a training leaves beside it."""
    saved(tmp_path / "leaves")
    (tmp_path / "leaves" / "train.py").write_text("secret = 1\n")
    (tmp_path / "leaves" / "optimizer.pt").write_bytes(b"state")
    return tmp_path / "leaves"


def saved(path: Path, seed: int = 0, **fields: int) -> EupeForImageClassification:
    model = randomise(EupeForImageClassification(tiny_config("vit", **{"num_labels": 3, **fields})), seed).eval()
    model.save_pretrained(path)
    return model


def read(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def commits(server: HubServer) -> int:
    return len(server.repos[REPO].commits)


# ---- what is uploaded ----


def test_dry_run_says_what_it_would_upload_and_uploads_nothing(
    server: HubServer, publish: Publish, folder: Path
) -> None:
    code, out, _ = publish("--folder", folder)
    lines = out.splitlines()
    assert code == 0 and server.repos == {}
    assert not [method for method, _ in server.requests if method != "GET"]
    assert lines[0] == "One commit to me/mine, new, public:"
    size = (folder / "model.safetensors").stat().st_size
    assert f"  add     {size:>15,}  model.safetensors" in lines
    sizes = [int(line.split()[1].replace(",", "")) for line in lines if line.startswith("  add")]
    assert f"  {len(sizes)} files, {sum(sizes):,} bytes." in lines
    assert lines[-2:] == [
        "Left out, not part of the model: optimizer.pt, train.py.",
        "Nothing was sent; --push uploads it.",
    ]


def test_new_repository_gets_everything_in_one_commit(server: HubServer, publish: Publish, folder: Path) -> None:
    code, out, _ = publish("--folder", folder, "--private", "--push")
    assert code == 0 and out.splitlines()[-1].startswith(f"Published: {server.endpoint}/me/mine/commit/")
    files = server.files(REPO)
    expected = {name for name in read(folder) if name not in ("train.py", "optimizer.pt")}
    assert set(files) == expected >= SAVED_FILES and server.repos[REPO].private
    assert commits(server) == 2  # an empty one from creating the repository, and ours
    assert all(files[name] == read(folder)[name] for name in expected - {"README.md"})
    card = ModelCard(files["README.md"].decode())
    assert card.data.license_name == "fair-noncommercial-research-license"
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in card.text and '"PATH"' not in card.text
    model = EupeForImageClassification.from_pretrained(REPO)
    assert torch.equal(model.head.classifier.weight, saved(folder / "again").head.classifier.weight)
    assert AutoImageProcessor.from_pretrained(REPO).size.width == 64


def test_update_replaces_the_weights_and_removes_old_shards(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path
) -> None:
    assert publish("--folder", folder, "--push")[0] == 0
    shards = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    server.commit(REPO, shards)
    model = saved(tmp_path / "second", seed=1)
    before = commits(server)
    code, out, _ = publish("--folder", tmp_path / "second", "--push", "--message", "Train longer")
    assert code == 0 and commits(server) == before + 1
    assert "  replace " in out and re.search(r"^  delete +model-00001-of-00002.safetensors$", out, re.MULTILINE)
    files = server.files(REPO)
    assert files["notes.md"] == b"mine" and not shards.keys() & files.keys() - {"notes.md"}
    loaded = EupeForImageClassification.from_pretrained(REPO)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("layout", ["raw", "dinov3"])
def test_checkpoint_is_converted_first(server: HubServer, publish: Publish, tmp_path: Path, layout: str) -> None:
    config = variant_config("eupe-t")
    state = random_state(config, layout)
    torch.save(state, tmp_path / "EUPE-ViT-T.pt")
    code, out, _ = publish("--checkpoint", tmp_path / "EUPE-ViT-T.pt", "--card", "eupe-t", "--push")
    assert code == 0 and out.startswith(f"Read {tmp_path / 'EUPE-ViT-T.pt'}: eupe-t, layout {layout}.\nCompared ")
    assert set(server.files(REPO)) == SAVED_FILES
    expected, _ = to_eupe(state, config, layout)
    loaded = AutoModel.from_pretrained(REPO).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    card = ModelCard(server.files(REPO)["README.md"].decode())
    assert card.data.base_model == "facebook/EUPE-ViT-T" and len(card.data.eval_results) == 11


def test_published_name_is_fetched(server: HubServer, publish: Publish) -> None:
    server.add_repo("facebook/EUPE-ViT-T", {"EUPE-ViT-T.pt": checkpoint()[0]})
    code, out, _ = publish("--name", "eupe-t")
    assert code == 0 and "model.safetensors" in out and REPO not in server.repos


def test_adapter_and_vlm_are_complete(server: HubServer, publish: Publish, tmp_path: Path) -> None:
    model, processor = make_vlm("vit")
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    assert publish("--folder", tmp_path / "vlm", "--push")[0] == 0
    assert set(server.files(REPO)) == set(read(tmp_path / "vlm")) >= {"tokenizer.json", "processor_config.json"}
    saved(tmp_path / "base")
    base = EupeForImageClassification.from_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(base, lora_config(base, r=2))
    wrapped.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    for names in (["q_proj", "k_proj"], ["k_proj", "q_proj"]):  # an update: peft writes names in any order
        path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": names}))
        assert publish("--folder", tmp_path / "adapter", "--push", repo="me/adapter")[0] == 0
    files = set(server.files("me/adapter"))
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "eupe_config.json"}
    assert "holds another model" in publish("--folder", tmp_path / "adapter", "--push")[2]


def test_branch_and_pull_request_leave_main_alone(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path
) -> None:
    assert publish("--folder", folder, "--push", "--revision", "draft")[0] == 0
    assert server.files(REPO) == {} and set(server.files(REPO, "draft")) >= SAVED_FILES
    assert publish("--folder", folder, "--push")[0] == 0
    before = server.files(REPO)
    saved(tmp_path / "second", seed=1)
    code, out, _ = publish("--folder", tmp_path / "second", "--push", "--create-pr")
    assert code == 0 and out.splitlines()[-1] == f"Published: {server.endpoint}/me/mine/discussions/1"
    weights = server.files(REPO, "refs/pr/1")["model.safetensors"]
    assert server.files(REPO) == before and weights == read(tmp_path / "second")["model.safetensors"]


# ---- what is refused ----


@pytest.mark.parametrize("push", [[], ["--push"]])
def test_another_model_is_not_replaced(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path, push: list[str]
) -> None:
    saved(tmp_path / "other", hidden_size=48)
    there = {**read(tmp_path / "other"), "pytorch_model.bin": b"old", "tokenizer.json": b"{}", "notes.md": b"mine"}
    server.add_repo(REPO, there)
    code, _, err = publish("--folder", folder, *push)
    assert code == 2 and "me/mine holds another model: hidden_size is 48 there and 32 here; give another --repo" in err
    assert server.files(REPO) == there
    code, out, _ = publish("--folder", folder, *push, "--overwrite")
    assert code == 0 and out.count("  delete ") == 2
    assert ("pytorch_model.bin" in server.files(REPO)) == (not push)
    assert ("tokenizer.json" in server.files(REPO)) == (not push)
    assert server.files(REPO)["notes.md"] == b"mine"


def test_weights_without_configuration_are_another_model(server: HubServer, publish: Publish, folder: Path) -> None:
    server.add_repo(REPO, {"EUPE-ViT-S.pt": b"weights"})
    code, _, err = publish("--folder", folder, "--push")
    assert code == 2 and "holds another model: it has EUPE-ViT-S.pt and no config.json" in err
    assert set(server.files(REPO)) == {"EUPE-ViT-S.pt"}


def test_newer_commit_in_the_repository_is_kept(
    server: HubServer, publish: Publish, folder: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_repo(REPO, {"notes.md": b"first"})
    look = script.look

    def look_and_be_overtaken(*arguments: object) -> object:
        plan = look(*arguments)
        server.commit(REPO, {"notes.md": b"second"})
        return plan

    monkeypatch.setattr(script, "look", look_and_be_overtaken)
    code, _, err = publish("--folder", folder, "--push")
    assert code == 2 and err.endswith("me/mine has a newer commit, which was kept: check it, then push again.")
    assert server.files(REPO) == {"notes.md": b"second"}


@pytest.mark.parametrize("exists", [False, True])
def test_no_permission_is_a_one_line_message(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path, waits: list[float], exists: bool
) -> None:
    if exists:
        server.add_repo(REPO, {"notes.md": b"mine"})
    server.fail_uploads(403)
    code, _, err = publish("--folder", folder, "--push")
    assert code == 2 and "Your token may not write to me/mine: use one with write access, or another --repo." in err
    assert (server.files(REPO) == {"notes.md": b"mine"}) if exists else (server.repos == {})
    with use_hub(server, tmp_path / "logged out"):
        server.clear_faults()
        code, _, err = publish("--folder", folder, "--push")
    assert code == 2 and "The Hub does not know you: log in with `hf auth login`" in err


@pytest.mark.parametrize("step", [step for step in UPLOAD_STEPS if step != "create_repo"])
def test_interrupted_upload_leaves_the_repository_alone(
    server: HubServer, publish: Publish, folder: Path, waits: list[float], step: str
) -> None:
    server.add_repo(REPO, {"notes.md": b"mine"})
    server.fail_uploads(500, step=step)
    code, _, err = publish("--folder", folder, "--push")
    assert code == 2 and "the files in me/mine are as they were" in err and err.endswith("try again.")
    assert server.files(REPO) == {"notes.md": b"mine"} and commits(server) == 1
    server.clear_faults()
    assert publish("--folder", folder, "--push")[0] == 0
    assert set(server.files(REPO)) >= SAVED_FILES | {"notes.md"} and commits(server) == 2


def test_options_that_do_not_fit_the_repository_are_refused(server: HubServer, publish: Publish, folder: Path) -> None:
    code, _, err = publish("--folder", folder, "--create-pr")
    assert code == 2 and "me/mine does not exist: a pull request needs a repository." in err
    server.add_repo(REPO)
    code, _, err = publish("--folder", folder, "--private", "--push")
    assert code == 2 and "me/mine exists and is public: --private is for a new repository" in err


def test_folder_without_a_model_is_refused(server: HubServer, publish: Publish, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty holds no EUPE model: expected config.json" in publish("--folder", tmp_path / "empty")[2]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "dinov3_vit"}))
    assert "holds no EUPE model" in publish("--folder", folder)[2]
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    code, _, err = publish("--folder", folder)
    assert code == 2 and "model.safetensors is damaged or was cut short" in err


@pytest.mark.parametrize("name", ["vocab.json", "config.json", "README.md", "model.safetensors", "tokenizer.model"])
def test_links_are_not_followed(server: HubServer, publish: Publish, folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    (folder / "logs").symlink_to(tmp_path)  # not part of a model: left out, as any other
    for push in ([], ["--push"]):
        code, out, err = publish("--folder", folder, *push)
        assert (code, out) == (
            2,
            "",
        ) and f"{folder / name} is a link to {tmp_path / 'secret'}, and" in err
    assert server.repos == {}
    (folder / name).unlink()
    (folder / name).write_bytes((tmp_path / "secret").read_bytes())
    assert publish("--folder", folder, "--push")[0] == 0
    assert not server.files(REPO).keys() & {"logs", "secret"}


def test_what_a_killed_run_left_is_removed_by_the_next(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with scratch_folder(temporary / "eupe-publish") as running:
        (left := temporary / ".eupe-publish.killed.part" / "converted").mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"left")
        assert publish("--folder", folder)[0] == 0
        assert list(temporary.iterdir()) == [running]
    assert publish("--folder", folder)[0] == 0
    assert list(temporary.iterdir()) == []


def test_card_with_another_licence_or_for_another_model_is_refused(
    server: HubServer, publish: Publish, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    code, _, err = publish("--folder", folder, "--card", tmp_path / "card.md")
    assert code == 2 and "card.md states license: mit, but EUPE's weights" in err
    code, _, err = publish("--folder", folder, "--card", "eupe-t")
    assert code == 2 and "The card of eupe-t is for its encoder alone, which this is not: give another --card." in err
    EupeModel(tiny_config("vit")).save_pretrained(tmp_path / "encoder")
    assert "The card of eupe-t is for" in publish("--folder", tmp_path / "encoder", "--card", "eupe-t")[2]
    (folder / "README.md").unlink()
    code, _, err = publish("--folder", folder)
    assert code == 2 and "There is no card at" in err
    (tmp_path / "card.md").write_text("---\ntags:\n- leaves\n---\n# Mine\n")
    assert publish("--folder", folder, "--card", tmp_path / "card.md", "--push")[0] == 0
    card = ModelCard(server.files(REPO)["README.md"].decode())
    assert card.data.tags == ["leaves"] and card.data.license == "other" and "# Mine" in card.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "x", "--name", "eupe-t"], "not allowed with argument"),
        (["--folder", "x", "--create_pr", "--revision", "a"], "not allowed with argument"),
        (["--folder", "x", "--head", "h", "--task", "depth"], "--head joins a raw encoder"),
        (["--checkpoint", "x", "--task", "depth"], "they need --head FILE"),
        (["--checkpoint", "x", "--revision", "a", "--create-pr"], "not allowed with argument"),
        (["--checkpoint", "nothing.pt"], "No checkpoint at nothing.pt."),
    ],
)
def test_misuse_is_a_one_line_message(server: HubServer, publish: Publish, arguments: list[str], message: str) -> None:
    code, _, err = publish(*arguments)
    assert code == 2 and message in err
    for repo in ("mine", 'me/x");import os;("', "me/a b", "me/a\nb"):  # it lands in the code of a card
        assert publish("--folder", "x", repo=repo)[2].endswith(f"--repo must be USER/NAME, got {repo!r}")
