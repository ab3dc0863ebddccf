# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Short names against a stand-in Hub: `from_pretrained("eupe-t")`, the cache behind it, and the hook."""

import hashlib
import logging
import os
import shlex
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_server import TOKEN, HubServer, use_hub
from huggingface_hub import hf_hub_download
from published import (
    FETCHED,
    FILE,
    REPO,
    SAVED_FILES,
    URL,
    assert_weights,
    checkpoint,
    converted_folder,
    files_below,
    run_python,
)
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    ViTConfig,
    ViTModel,
    pipeline,
)

from eupe_hf import (
    CheckpointError,
    EupeBackbone,
    EupeConfig,
    EupeLlavaConfig,
    EupeModel,
    hub,
)
from eupe_hf.conversion.checkpoints import load_checkpoint, save_layout
from eupe_hf.models.image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil


LOADED = {
    AutoConfig: EupeConfig,
    AutoModel: EupeModel,
    AutoBackbone: EupeBackbone,
    AutoImageProcessor: (EupeImageProcessor, EupeImageProcessorPil),
    AutoProcessor: (EupeImageProcessor, EupeImageProcessorPil),
    EupeConfig: EupeConfig,
    EupeModel: EupeModel,
    EupeBackbone: EupeBackbone,
    EupeImageProcessor: (EupeImageProcessor, EupeImageProcessorPil),
    EupeImageProcessorPil: EupeImageProcessorPil,
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in Hub with the raw file of eupe-t, an empty home, and an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo(REPO, {FILE: checkpoint()[0], "README.md": b"---\nlicense: other\n---\n"})
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the client's waits between retries instead of sitting them out."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


# ---- the names ----


@pytest.mark.parametrize("auto_class", LOADED, ids=lambda cls: cls.__name__)
def test_short_name_loads_everywhere_and_asks_once(server: HubServer, auto_class: type) -> None:
    loaded = auto_class.from_pretrained("eupe-t")
    assert isinstance(loaded, LOADED[auto_class])
    assert server.requests == FETCHED
    server.reset_log()
    again = auto_class.from_pretrained("eupe-t")
    assert server.requests == []
    for one in (loaded, again):
        if isinstance(one, torch.nn.Module):
            assert_weights(one)
            assert not one.training
            assert (one.name_or_path, one.config.name_or_path) == ("eupe-t", "eupe-t")
        elif isinstance(one, EupeConfig):
            assert (one.hidden_size, one.name_or_path) == (192, "eupe-t")
        else:
            assert dict(one.size) == {"height": 256, "width": 256}


def test_configuration_of_a_vlm_refuses_the_name_of_an_encoder(server: HubServer) -> None:
    with pytest.raises(ValueError, match=r"model of type 'eupe', not an EUPE VLM.*from_vision_text joins"):
        EupeLlavaConfig.from_pretrained("eupe-t")
    assert server.requests == FETCHED


def test_convnext_loads_by_its_short_name(server: HubServer) -> None:
    repo = "facebook/EUPE-ConvNeXt-T"
    server.add_repo(repo, {"EUPE-ConvNeXt-T.pt": checkpoint("eupe-convnext-t")[0]})
    assert_weights(AutoModel.from_pretrained("eupe-convnext-t"), "eupe-convnext-t")
    backbone = AutoBackbone.from_pretrained("eupe-convnext-t", out_indices=[1, 4])
    assert_weights(backbone, "eupe-convnext-t")
    assert backbone.channels == [96, 768]
    assert (backbone.name_or_path, server.repo_ids_requested()) == ("eupe-convnext-t", {repo})


def test_overrides_reach_the_model(server: HubServer) -> None:
    model = AutoModel.from_pretrained("eupe-t", dtype=torch.bfloat16, attn_implementation="eager")
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    backbone = AutoBackbone.from_pretrained("eupe-t", out_indices=[3, 12])
    assert (backbone.out_features, backbone.channels) == (["stage3", "stage12"], [192, 192])
    assert EupeBackbone.from_pretrained("eupe-t", out_features=["stem"]).out_indices == [0]
    config, unused = AutoConfig.from_pretrained("eupe-t", image_size=384, nonsense=1, return_unused_kwargs=True)
    assert (config.image_size, config.name_or_path, unused["nonsense"]) == (384, "eupe-t", 1)
    model, info = EupeModel.from_pretrained("eupe-t", config=config, output_loading_info=True)
    assert (model.config.image_size, model.name_or_path, list(info["missing_keys"])) == (384, "eupe-t", [])
    assert AutoImageProcessor.from_pretrained("eupe-t", size={"height": 384, "width": 512}).size.width == 512


def test_synonyms_load_in_eupe_classes_alone(server: HubServer) -> None:
    for name in ("eupe_vitt16", REPO, "EUPE-ViT-T", "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"):
        model = EupeModel.from_pretrained(name)
        assert_weights(model)
        assert (model.name_or_path, EupeConfig.from_pretrained(name).name_or_path) == (name, name)
    assert server.requests == FETCHED
    with pytest.raises(OSError, match="eupe_vitt16 is not a local folder"):
        AutoModel.from_pretrained("eupe_vitt16")
    with pytest.raises(OSError, match="eupe-x is not a local folder"):
        AutoModel.from_pretrained("eupe-x")
    with pytest.raises(OSError, match="eupe-x is not a local folder"):
        EupeModel.from_pretrained("eupe-x")


def test_pipeline_takes_the_short_name(server: HubServer) -> None:
    for arguments in ({}, {"task": "image-feature-extraction", "revision": "main"}):
        extract = pipeline(model="eupe-t", **arguments)
        assert_weights(extract.model)
        picture = torch.zeros(3, 40, 60, dtype=torch.uint8).permute(1, 2, 0).numpy()
        inputs = extract.image_processor(picture, return_tensors="pt")
        with torch.no_grad():
            expected = extract.model(**inputs).last_hidden_state
        assert torch.equal(extract.forward(inputs)[0], expected)
    assert server.requests == FETCHED


IMPORTS = {
    "pipeline_first_without_peft": "sys.modules['peft'] = None\nfrom transformers import pipeline\nimport eupe_hf",
    "package_first_with_peft": "import eupe_hf\nfrom transformers import pipeline",
}


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_pipeline_works_in_any_order_of_imports(server: HubServer, home: Path, imports: str) -> None:
    program = (
        f"import json, sys\n{imports}\n"
        "from transformers import AutoBackbone, AutoModel\n"
        "from transformers.utils import is_peft_available\n"
        "models = [pipeline(model='eupe-t').model, pipeline('image-feature-extraction', model='eupe-t').model]\n"
        "models += [AutoModel.from_pretrained('eupe-t'), AutoBackbone.from_pretrained('eupe-t')]\n"
        "print(json.dumps([is_peft_available(), [(type(m).__name__, m.name_or_path) for m in models]]))\n"
    )
    [[has_peft, models]] = run_python(program, server, home)
    assert has_peft == (transformers.utils.is_peft_available() and "None" not in imports)
    assert models == [["EupeModel", "eupe-t"]] * 3 + [["EupeBackbone", "eupe-t"]]
    assert server.requests == FETCHED


def test_name_stays_after_saving(server: HubServer, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained("eupe-t")
    model.save_pretrained(tmp_path / "saved")
    assert (model.name_or_path, model.config.name_or_path) == ("eupe-t", "eupe-t")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    assert EupeModel.from_pretrained(tmp_path / "saved").name_or_path == str(tmp_path / "saved")


def test_adapter_names_the_model_and_loads(server: HubServer, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(AutoModel.from_pretrained("eupe-t"), lora).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == "eupe-t"
    server.reset_log()
    loaded = AutoModel.from_pretrained(tmp_path / "adapter")
    assert server.requests == []
    assert (type(loaded), loaded.name_or_path) == (EupeModel, "eupe-t")
    pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, plain = (m(pixel_values).pooler_output for m in (tuned, AutoModel.from_pretrained("eupe-t")))
        assert torch.equal(loaded(pixel_values).pooler_output, expected)
    assert not torch.equal(plain, expected)


# ---- where a model is looked for ----


def test_local_folder_comes_first(server: HubServer) -> None:
    config = EupeConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, image_size=32)
    EupeModel(config).save_pretrained("eupe-t")
    for cls in (AutoModel, AutoBackbone, EupeModel):
        assert cls.from_pretrained("eupe-t").config.hidden_size == 16
    assert dict(AutoImageProcessor.from_pretrained("eupe-t").size) == {"height": 32, "width": 32}
    assert pipeline("image-feature-extraction", model="eupe-t").model.config.hidden_size == 16
    (adapter := Path("eupe-t", "adapter_config.json")).write_text("{}")
    assert transformers.utils.find_adapter_config_file("eupe-t") == str(adapter)
    assert server.requests == []


@pytest.mark.parametrize("layout", ["eupe", "dinov3"])
def test_repository_may_hold_another_layout(server: HubServer, home: Path, tmp_path: Path, layout: str) -> None:
    (tmp_path / FILE).write_bytes(checkpoint()[0])
    save_layout(load_checkpoint(tmp_path / FILE), tmp_path / layout, layout)
    files = {path.name: path.read_bytes() for path in (tmp_path / layout).iterdir()}
    server.commit(REPO, {**files, FILE: b"not to be read", "onnx/model.onnx": b"nor this", "extra.safetensors": b"0"})
    for name in ("eupe-t", REPO):
        model = EupeModel.from_pretrained(name)
        assert_weights(model)
        assert model.name_or_path == name
    got = {path.rsplit("/", 1)[1] for method, path in server.requests if method == "GET" and "/resolve/" in path}
    processor = {"preprocessor_config.json"} if layout == "eupe" else set()
    assert got == {"config.json", "model.safetensors"} | processor
    assert (home / "eupe-hf" / "eupe-t" / "refs" / "main").is_file()
    server.reset_log()
    assert_weights(AutoModel.from_pretrained("eupe-t"))
    assert dict(AutoImageProcessor.from_pretrained("eupe-t").size) == {"height": 256, "width": 256}
    assert server.requests == []


def test_other_names_pass_untouched(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViTConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(config).save_pretrained("vit")
    server.add_repo("me/vit", {path.name: path.read_bytes() for path in Path("vit").iterdir()})
    assert isinstance(AutoModel.from_pretrained("me/vit"), ViTModel)
    assert server.repo_ids_requested() == {"me/vit"}

    hub.remove_short_names()
    seen: list[Any] = []
    spy = classmethod(lambda cls, name, *args, **kwargs: seen.append(name) or seen)
    monkeypatch.setattr(AutoConfig, "from_pretrained", spy)
    try:
        hub.install_short_names()
        for name in (Path("eupe-t"), "me/vit", "EUPE-T", 5):
            assert AutoConfig.from_pretrained(name) is seen
            assert seen[-1] is name
    finally:
        hub.remove_short_names()
        monkeypatch.undo()
        hub.install_short_names()


# ---- the cache ----


def test_cache_is_keyed_by_revision_and_digest(server: HubServer, home: Path) -> None:
    first = server.repos[REPO].branches["main"]
    server.tag(REPO, "v1")
    server.commit(REPO, {FILE: checkpoint(seed=1)[0]})
    server.commit(REPO, {FILE: checkpoint(seed=1)[0]}, branch="dev/next")
    for revision, seed in {None: 1, "v1": 0, first: 0, "main": 1, "dev/next": 1}.items():
        arguments = {} if revision is None else {"revision": revision}
        assert_weights(AutoModel.from_pretrained("eupe-t", **arguments), seed=seed)
        server.reset_log()
        assert_weights(AutoBackbone.from_pretrained("eupe-t", **arguments), seed=seed)
        assert server.requests == []
    store = home / "eupe-hf" / "eupe-t"
    folders = {
        converted_folder(server, "v1"),
        converted_folder(server, "main", 1),
        converted_folder(server, "dev/next", 1),
    }
    assert len(folders) == 3
    assert {path.name for path in store.iterdir()} == {*folders, "refs", "digests", ".lock"}
    assert {path.stem for path in (store / "digests").iterdir()} == folders
    assert {path.name for path in (store / "refs").iterdir()} == {"main", "v1", first, "dev%2Fnext"}
    assert files_below(store / converted_folder(server, "v1")) == SAVED_FILES


def test_forced_download_gives_the_new_weights(server: HubServer) -> None:
    assert_weights(AutoModel.from_pretrained("eupe-t"))
    server.commit(REPO, {FILE: checkpoint(seed=1)[0]})
    assert_weights(AutoModel.from_pretrained("eupe-t"), seed=0)
    assert_weights(AutoModel.from_pretrained("eupe-t", force_download=True), seed=1)
    assert_weights(AutoModel.from_pretrained("eupe-t"), seed=1)


@pytest.mark.parametrize("deleted", ["eupe-hf/eupe-t/*-*", "eupe-hf/eupe-t/*-*/config.json", "eupe-hf", "hub/*/blobs"])
def test_deleted_parts_of_the_cache_heal(server: HubServer, home: Path, deleted: str) -> None:
    AutoModel.from_pretrained("eupe-t")
    [path] = home.glob(deleted)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    killed = home / "eupe-hf" / "eupe-t" / ".killed.part" / "new"
    killed.mkdir(parents=True)
    assert_weights(AutoModel.from_pretrained("eupe-t"))
    assert files_below(home / "eupe-hf" / "eupe-t" / converted_folder(server)) == SAVED_FILES
    assert killed.exists() == deleted.startswith("hub")


def test_cache_dir_is_used_from_any_working_directory(server: HubServer, home: Path, tmp_path: Path) -> None:
    assert_weights(AutoModel.from_pretrained("eupe-t", cache_dir="here"))
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    server.reset_log()
    assert_weights(AutoModel.from_pretrained("eupe-t", cache_dir=tmp_path / "work" / "here"))
    assert server.requests == []
    assert files_below(home) == set()
    assert files_below(tmp_path / "elsewhere") == set()


def test_token_opens_a_private_repository(server: HubServer) -> None:
    server.repos[REPO].private = True
    with pytest.raises(OSError, match="401 Client Error"):
        AutoModel.from_pretrained("eupe-t")
    assert_weights(AutoModel.from_pretrained("eupe-t", token=TOKEN))


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_downloaded_file_is_converted_offline(server: HubServer, home: Path, how: str) -> None:
    hf_hub_download(REPO, FILE)
    server.reset_log()
    is_environment = how == "HF_HUB_OFFLINE"
    with use_hub(server, home, offline=is_environment):
        model = AutoModel.from_pretrained("eupe-t", **({} if is_environment else {"local_files_only": True}))
    assert_weights(model)
    assert server.requests == []


def test_nothing_cached_offline_says_how_to_do_it_by_hand(server: HubServer, home: Path) -> None:
    with use_hub(server, home, offline=True), pytest.raises(OSError, match="offline mode is enabled") as caught:
        AutoModel.from_pretrained("eupe-t")
    message = str(caught.value)
    assert str(home / "eupe-hf" / "eupe-t") in message
    url = f"{server.endpoint}{URL}/{FILE}"
    assert f"download {url}, then run\n" in message
    with urllib.request.urlopen(url) as answer:
        Path(FILE).write_bytes(answer.read())
    command = shlex.split(message.splitlines()[2])
    assert command[:2] == ["python", "-c"]
    assert run_python(command[2], server, home) == []
    with use_hub(server, home, offline=True):
        assert_weights(AutoModel.from_pretrained("eupe-t"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_at_once_convert_once(processes: int, server: HubServer, home: Path) -> None:
    program = (
        "import hashlib, json, os, pathlib, time, eupe_hf\n"
        "from eupe_hf.conversion import convert\n"
        "save, saved = convert.save_model_folder, []\n"
        "convert.save_model_folder = lambda *args: saved.append(args) or save(*args)\n"
        "pathlib.Path(f'ready{os.getpid()}').touch()\n"
        "while len(list(pathlib.Path().glob('ready*'))) < PROCESSES: time.sleep(0.01)\n"
        "state = eupe_hf.EupeModel.from_pretrained('eupe-t').state_dict()\n"
        "digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()\n"
        "print(json.dumps([len(saved), digest]))\n"
    ).replace("PROCESSES", str(processes))
    with ThreadPoolExecutor(processes) as executor:
        found = [told for [told] in executor.map(lambda _: run_python(program, server, home), range(processes))]
    assert sorted(saved for saved, _ in found) == [0] * (processes - 1) + [1]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in checkpoint()[1].values())).hexdigest()
    assert {told for _, told in found} == {digest}
    assert server.requests == FETCHED
    assert {path.name for path in (home / "eupe-hf" / "eupe-t").iterdir()} == {
        converted_folder(server),
        "refs",
        "digests",
        ".lock",
    }


# ---- when it goes wrong ----

FAULTS: dict[str, tuple[Callable[[HubServer], Any], str]] = {
    "unauthorised": (lambda hub: hub.fail(REPO, 401), "401 Client Error. Repository Not Found"),
    "gated": (lambda hub: hub.fail(REPO, 403), "403 Client Error. Cannot access gated repo"),
    "no_repository": (lambda hub: hub.fail(REPO, 404), "404 Client Error. Repository Not Found"),
    "internal_error": (lambda hub: hub.fail(REPO, 500), "'500 Internal Server Error'"),
    "unavailable": (lambda hub: hub.fail(REPO, 503), "'503 Service Unavailable'"),
    "unavailable_body": (lambda hub: hub.fail(REPO, 503, method="GET"), "'503 Service Unavailable'"),
    "cut": (lambda hub: hub.cut_after(REPO, FILE, 9_999, times=None), "received 9999 bytes, expected"),
    "wrong_digest": (lambda hub: hub.corrupt(REPO, FILE), "was damaged during the download: its sha256 is"),
}


@pytest.mark.parametrize("fault", [*FAULTS, "forced no_repository", "forced unavailable"])
def test_fault_is_reported_and_leaves_nothing(server: HubServer, home: Path, waits: list[float], fault: str) -> None:
    inject, cause = FAULTS[fault.removeprefix("forced ")]
    inject(server)
    with pytest.raises(OSError, match=f"^eupe-t .* {REPO} on the Hub: ") as caught:
        EupeModel.from_pretrained("eupe-t", force_download="forced" in fault)
    assert cause in str(caught.value)
    assert f"download {server.endpoint}{URL}/{FILE}" in str(caught.value)
    assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}
    assert [path for path in files_below(home / "hub") if "/blobs/" in path or path.endswith(".pt")] == []
    server.clear_faults()
    assert_weights(EupeModel.from_pretrained("eupe-t"))


def test_missing_file_and_revision_are_reported(server: HubServer, home: Path) -> None:
    with pytest.raises(OSError, match=r"none for revision 'v9'; .*Revision Not Found.*\n.*/resolve/v9/EUPE-ViT-T.pt"):
        AutoModel.from_pretrained("eupe-t", revision="v9")
    server.commit(REPO, {FILE: None})
    with pytest.raises(OSError, match=f"404 Client Error. Entry Not Found .*{FILE}"):
        AutoModel.from_pretrained("eupe-t")
    server.commit(REPO, {"config.json": b'{"model_type": "eupe"}'})
    with pytest.raises(OSError, match=f"{REPO} holds config.json without model.safetensors"):
        AutoModel.from_pretrained("eupe-t")
    assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}


def test_cut_download_goes_on(server: HubServer, waits: list[float]) -> None:
    server.cut_after(REPO, FILE, 1_000_000)
    assert_weights(AutoModel.from_pretrained("eupe-t"))
    assert waits == [1]


WRONG_FILES = {
    "truncated": (lambda: checkpoint()[0][:1_000_000], r"1,000,000 bytes\) cannot be read .* truncated"),
    "error_page": (lambda: b"<html>Sorry</html>", "is a text file"),
    "other_model": (lambda: checkpoint("eupe-convnext-t")[0], r"EUPE-ViT-T.pt .* eupe-convnext-t, .*, not eupe-t\."),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_file_behind_the_name_is_refused(server: HubServer, home: Path, wrong: str) -> None:
    content, message = WRONG_FILES[wrong]
    server.commit(REPO, {FILE: content()})
    for _ in range(2):
        with pytest.raises(CheckpointError, match=message):
            AutoModel.from_pretrained("eupe-t")
    assert files_below(home / "eupe-hf") == {"eupe-t/.lock"}
    server.commit(REPO, {FILE: checkpoint()[0]})
    assert_weights(AutoModel.from_pretrained("eupe-t"))


def test_licence_is_named_once(server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [record.message for record in caplog.records if "Noncommercial" in record.message]

    with caplog.at_level(logging.WARNING):
        AutoModel.from_pretrained("eupe-t")
        [line] = warnings()
        assert line.startswith("The weights of eupe-t come with the FAIR Noncommercial Research License")
        assert "\n" not in line
        AutoModel.from_pretrained("eupe-t")
        AutoBackbone.from_pretrained("eupe-t")
    assert warnings() == [line]


# ---- the hook ----

HOOK = """
import importlib, json, transformers.pipelines
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.models.auto import auto_factory
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

CLASSES = (AutoConfig, AutoModel, AutoImageProcessor, AutoProcessor, AutoVideoProcessor, AutoBackbone)
MODULES = (transformers.utils, auto_factory, transformers.pipelines)
LOOKUPS = ("resolve_revision", "find_adapter_config_file", "get_task")

def state():
    found = [vars(cls).get("from_pretrained") for cls in CLASSES]
    return found + [vars(module).get(name) for module in MODULES for name in LOOKUPS]

def same(before):
    return [old is new for old, new in zip(before, state(), strict=True)]

def error():
    try:
        AutoModel.from_pretrained("eupe-t")
    except OSError as error:
        return str(error)

original = state()
import eupe_hf
print(json.dumps([all(same(original)), type(AutoConfig.for_model("eupe")).__name__, error()]))
eupe_hf.hub.install_short_names()
print(json.dumps(same(original)))
installed = state()
for _ in range(2):
    importlib.reload(eupe_hf)
    importlib.reload(eupe_hf.hub)
    eupe_hf.hub.register()
    eupe_hf.hub.install_short_names()
print(json.dumps([all(same(installed)), AutoModel.from_pretrained("eupe-t").name_or_path]))
for _ in range(2):
    eupe_hf.hub.remove_short_names()
    print(json.dumps([all(same(original)), error()]))
"""


def test_hook_comes_and_goes_without_trace(server: HubServer, home: Path) -> None:
    off, installed, again, *removed = run_python(HOOK, server, home, EUPE_HF_NO_SHORT_NAMES="1")
    error = (
        "eupe-t is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'"
    )
    assert off[:2] == [True, "EupeConfig"]
    assert off[2].startswith(error)
    # AutoModel keeps its own; of the three modules, only `transformers.pipelines` has get_task
    assert installed == [
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert again == [True, "eupe-t"]
    assert [identical for identical, _ in removed] == [True, True]
    assert all(message.startswith(error) for _, message in removed)
