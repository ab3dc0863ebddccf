# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The model cards are current, valid on the Hub, and agree with the package's tables; every snippet in them runs."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import yaml
from conftest import ROOT
from hub_server import TOKEN, HubServer, hub_environment, use_hub
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult, ModelCardData, model_index_to_eval_results
from modeling_common import pixels, randomise, tiny_config
from PIL import Image
from published import assert_weights, checkpoint
from transformers import UperNetConfig, UperNetForSemanticSegmentation
from vlm_common import make_vlm

from eupe_hf import VARIANTS, EupeForMultiTask, EupeForSegmentation, EupeModel, EupeMultiTaskConfig, variant_config
from eupe_hf.hub.decoders import decoder_card
from eupe_hf.lora import lora_config
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE


CARDS = ROOT / "model_cards"
QUICK = ("eupe-t", "eupe-convnext-t")
BY_NAME = pytest.mark.parametrize("name", VARIANTS)
SLOW = [pytest.param(name, marks=() if name == "eupe-t" else pytest.mark.slow) for name in VARIANTS]
BY_SIZE = pytest.mark.parametrize("name", SLOW)
# What only the author of a model knows, as a user would write it.
ABOUT = {
    "head": {"trained_on": "[me/rooms](https://huggingface.co/datasets/me/rooms), 5,000 photographs.",
             "recipe": "20 epochs, frozen encoder.", "results": "Top 1 on 500 held out: 0.91.",
             "intended_use": "Sorting photographs of rooms.", "limits": "Rooms of one country."},
    "adapter": {"intended_use": "Leaves.", "limits": "Green ones.", "merged": "Not tried with others."},
    "vlm": {"alignment_data": "558 K pairs.", "instruction_data": "665 K instructions.", "recipe": "One epoch each.",
            "results": "TextVQA: not measured.", "intended_use": "Questions about photographs.",
            "limits": "English only.", "language_model_license": "Apache-2.0."},
}  # fmt: skip


def load_script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the module of their class
    spec.loader.exec_module(module)
    return module


generate = load_script("model_cards/generate.py")


def snippets(card: ModelCard) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.text, flags=re.MULTILINE | re.DOTALL)


def run(snippet: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute a snippet with these names, and return all names it leaves."""
    exec(compile(snippet, "card", "exec"), names)
    return names


def assert_valid(card: ModelCard, caplog: pytest.LogCaptureFixture) -> None:
    """Check all that huggingface_hub can check without the Hub, strictly, and that it warns of nothing."""
    metadata = yaml.safe_load(card.content.split("---\n")[1])
    known = ModelCardData(**metadata, ignore_metadata_errors=False)
    assert known.to_dict() == card.data.to_dict() == metadata
    assert {key: metadata[key] for key in WEIGHTS_LICENSE} == WEIGHTS_LICENSE
    assert ModelCard(str(card)).content == card.content
    assert "{{" not in card.content and "[More Information Needed]" not in card.content
    assert "FAIR Noncommercial Research License" in card.text
    card.validate()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in Hub to which this process is logged in, and a working directory with a photograph."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Image.open(ROOT / "examples" / "images" / "coffee.jpg").save("photo.jpg")
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        yield server


# ---- the six encoders ----


def test_cards_are_what_the_template_gives() -> None:
    assert generate.main(["--check"]) == 0
    assert sorted(path.stem for path in CARDS.glob("eupe-*.md")) == sorted(VARIANTS)
    assert sorted(path.stem for path in CARDS.glob("*.yaml")) == sorted(VARIANTS)


def test_card_that_is_out_of_date_fails_the_check_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CARDS, tmp_path / "cards")
    monkeypatch.setattr(generate, "HERE", tmp_path / "cards")
    data = tmp_path / "cards" / "eupe-b.yaml"
    data.write_text(data.read_text().replace("415.4", "415.5"))
    (tmp_path / "cards" / "eupe-t.md").unlink()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "Out of date: eupe-t.md, eupe-b.md. Run `make cards` and commit the result.\n"
    assert not (tmp_path / "cards" / "eupe-t.md").exists()
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0
    assert "| 415.5 |" in (tmp_path / "cards" / "eupe-b.md").read_text()


@BY_NAME
def test_metadata_is_valid_and_names_the_base(name: str, server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    card = ModelCard.load(CARDS / f"{name}.md")
    assert_valid(card, caplog)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.base_model == VARIANTS[name].repo_id
    assert {"eupe", "arxiv:2603.22387"} <= set(data.tags)


@BY_NAME
def test_scores_are_the_papers_and_attributed_to_it(name: str) -> None:
    metadata = yaml.safe_load((CARDS / f"{name}.md").read_text().split("---\n")[1])
    _, results = model_index_to_eval_results(metadata["model-index"])
    assert [result.metric_value for result in results] == list(VARIANTS[name].paper.values())
    assert len(results) == (11 if name in ("eupe-t", "eupe-s", "eupe-b") else 9)
    for result in results:
        assert isinstance(result, EvalResult) and result.source_url == "https://arxiv.org/abs/2603.22387"
        assert "paper" in result.source_name and result.verified is None
    by_name = {(result.dataset_name, result.metric_type): result.metric_value for result in results}
    assert by_name["ADE20k", "mean_iou"] == VARIANTS[name].paper["ADE20k"]
    assert by_name["NYU Depth v2", "rmse"] == VARIANTS[name].paper["NYUv2"]


@BY_NAME
def test_own_figures_are_those_that_were_measured(name: str) -> None:
    data = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    rows = re.findall(rf"^\| {name} \| (\d+x\d+) \| \d+ \| ([\d.]+) \|", _read("tests/benchmarks/README.md"), re.M)
    assert data["speed"] == {shape: float(ms) for shape, ms in rows} and len(rows) == 3
    assert f"| `{name}` | {data['parity']:.1e} |" in _read("conversion/README.md")
    text = _read(f"model_cards/{name}.md")
    assert f"{VARIANTS[name].num_parameters:,}" in text
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in EupeModel(variant_config(name)).parameters())
    assert f"| {count * 4 / 1e6:.0f} MB |" in text


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@BY_SIZE
def test_snippets_of_a_card_run(
    name: str, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "conversion")
    variant = VARIANTS[name]
    server.add_repo(variant.repo_id, {variant.raw_file: checkpoint(name)[0]})
    assert load_script("conversion/publish.py").main(["--name", name, "--repo", f"me/{name}", "--push"]) == 0
    card = ModelCard(server.files(f"me/{name}")["README.md"].decode())
    assert '"PATH"' not in card.text
    with_package, by_id, without_package, in_timm, as_dinov3 = snippets(card)
    assert variant.timm_name in in_timm  # runs below

    names = run(with_package, {})
    config, side = names["model"].config, 256 // names["model"].config.patch_size
    assert names["feature"].shape == (1, config.hidden_size)
    assert names["patches"].shape == (1, side**2, config.hidden_size)
    assert f"# (1, {side**2}, {config.hidden_size}), row by row" in with_package
    assert_weights(names["model"], name)
    names = run(by_id, names)
    assert_weights(names["original"], name)
    assert_weights(names["model"], name)
    dinov3 = run(as_dinov3, dict(names))["model"].eval()
    with torch.inference_mode():
        found = dinov3(**names["inputs"]).pooler_output
    torch.testing.assert_close(found, names["feature"], rtol=0, atol=1e-5)
    names = run(without_package, names)  # with the package installed, its classes are used
    assert type(names["model"]) is EupeModel

    program = f"import sys\nsys.modules['eupe_hf'] = None\n{without_package}\nprint(type(model).__module__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], env=hub_environment(server, tmp_path / "home of a stranger"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers_modules.")


@pytest.mark.parametrize("name", QUICK)
def test_timm_snippet_loads_the_model(name: str, server: HubServer) -> None:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        pytest.skip(f"timm cannot be imported here: {error}")
    timm_name, file = VARIANTS[name].timm_name, Path("model.safetensors")
    from safetensors.torch import save_file

    save_file(timm.create_model(timm_name, num_classes=0).state_dict(), file)
    server.add_repo(f"timm/{timm_name}", {file.name: file.read_bytes()})
    model = run(snippets(ModelCard.load(CARDS / f"{name}.md"))[3], {})["model"]
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 256, 256)).shape == (1, variant_config(name).hidden_size)


# ---- templates for models of users, around the cards that the package writes ----


def fill(folder: Path, template: str) -> ModelCard:
    """Complete the card in a folder with the example's fields."""
    fields = folder.parent / "fields.yaml"
    fields.write_text(yaml.safe_dump(ABOUT[template]))
    assert generate.main(["--fill", str(folder), "--fields", str(fields)]) == 0
    card = ModelCard.load(folder / "README.md")
    for value in ABOUT[template].values():
        assert value in card.text
    return card


def multi_task() -> EupeForMultiTask:
    heads = {"rooms": {"task": "classification", "num_labels": 3}}
    return randomise(EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config("vit"), heads=heads))).eval()


def test_head_with_its_encoder(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = multi_task().task_model("rooms")
    model.config.name_or_path = "eupe-s"
    model.save_pretrained(tmp_path / "rooms")
    card = fill(tmp_path / "rooms", "head")
    assert_valid(card, caplog)
    assert (card.data.base_model, card.data.pipeline_tag) == ("facebook/EUPE-ViT-S", "image-classification")
    names = run(snippets(card)[0].replace('"PATH"', repr(str(tmp_path / "rooms"))), {})
    with torch.inference_mode():
        assert torch.equal(names["model"].eval()(pixels(64)).logits, model(pixels(64)).logits)


def test_head_alone_has_a_card_with_the_licence(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = multi_task()
    model.remove_head("rooms")
    model.save_pretrained(tmp_path / "encoder")
    server.add_repo("me/encoder", {path.name: path.read_bytes() for path in (tmp_path / "encoder").iterdir()})
    model = EupeForMultiTask.from_pretrained("me/encoder")
    model.add_head("rooms", "classification", num_labels=3)
    model.save_head("rooms", tmp_path / "rooms")
    card = ModelCard.load(tmp_path / "rooms" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("me/encoder", "eupe-hf")
    assert_valid(fill(tmp_path / "rooms", "head"), caplog)
    loaded = run(snippets(card)[0].replace('"PATH"', repr(str(tmp_path / "rooms"))), {})["model"]
    assert list(loaded.heads) == ["rooms"]
    for mine, theirs in zip(loaded.heads["rooms"].parameters(), model.heads["rooms"].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "rooms" / "README.md").write_text("# Mine\n")
    model.save_head("rooms", tmp_path / "rooms")
    assert (tmp_path / "rooms" / "README.md").read_text() == "# Mine\n"


def test_adapter(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    randomise(EupeModel(tiny_config("vit"))).save_pretrained(tmp_path / "base")
    server.add_repo("me/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    model = EupeForSegmentation.from_pretrained("me/base", num_labels=3)
    wrapped = peft.get_peft_model(model, lora_config(model, r=4))
    wrapped.save_pretrained(tmp_path / "leaves")
    caplog.clear()  # transformers reports the head as new
    card = fill(tmp_path / "leaves", "adapter")
    assert_valid(card, caplog)
    assert (card.data.base_model, card.data.library_name) == ("me/base", "peft")
    names: dict[str, Any] = {}
    for snippet in snippets(card):
        places = {"PATH": tmp_path / "leaves", "MERGED": tmp_path / "merged"}
        for word, place in places.items():
            snippet = snippet.replace(f'"{word}"', repr(str(place)))
        names = run(snippet, names)
    assert type(names["model"]) is EupeForSegmentation and (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_vlm(family: str, server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = make_vlm(family)
    model.config.vision_config.name_or_path, model.config.text_config.name_or_path = "eupe-s", "someone/language-model"
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    card = fill(tmp_path / "vlm", "vlm")
    assert_valid(card, caplog)
    assert card.data.base_model == ["facebook/EUPE-ViT-S", "someone/language-model"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    names = run(snippets(card)[0].replace('"PATH"', repr(str(tmp_path / "vlm"))), {})
    assert type(names["model"]) is type(model)


def test_field_that_is_missing_or_unknown_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    multi_task().task_model("rooms").save_pretrained(tmp_path / "rooms")
    before = (tmp_path / "rooms" / "README.md").read_text()
    (tmp_path / "fields.yaml").write_text(yaml.safe_dump({**ABOUT["head"], "limit": "x"} | {"limits": "y"}))
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--fill", str(tmp_path / "rooms"), "--fields", str(tmp_path / "fields.yaml")])
    error = capsys.readouterr().err
    assert "takes the fields intended_use, limits, recipe, results, trained_on; missing: none; unknown: limit" in error
    assert (tmp_path / "rooms" / "README.md").read_text() == before


HOSTILE = "x\n---\nlicense: mit\n---\n'a' \"b\" {{ card_data }} {% raw %} `c` |d| # e: !!python/object:f \u00fc"


@pytest.mark.parametrize("template", ABOUT)
def test_fields_come_out_as_text(template: str, server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    if template == "adapter":
        model = multi_task().task_model("rooms")
        peft.get_peft_model(model, lora_config(model, r=2)).save_pretrained(folder)
    else:
        (make_vlm("vit")[0] if template == "vlm" else multi_task().task_model("rooms")).save_pretrained(folder)
    before = ModelCard.load(folder / "README.md")
    fields = dict.fromkeys(ABOUT[template], HOSTILE)
    (tmp_path / "fields.yaml").write_text(yaml.safe_dump(fields))
    assert generate.main(["--fill", str(folder), "--fields", str(tmp_path / "fields.yaml")]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == before.data.to_dict()
    assert card.text.count(HOSTILE) == len(fields) and before.text.strip() in card.text
    for value, kind in ((["a"], "list"), ({"a": "b"}, "dict"), (None, "NoneType"), (True, "bool")):
        with pytest.raises(ValueError, match=rf"The field limits must be text, in markdown, got {kind}"):
            generate.filled_card(folder, {**fields, "limits": value})
    for given in (["a"], None, "text"):
        with pytest.raises(ValueError, match=r"The fields must be a mapping from names to text, got "):
            generate.filled_card(folder, given)


def test_decoder_card_states_licence_and_base(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = tiny_config("convnext", out_indices=[1, 2, 3, 4])
    backbone.name_or_path = "eupe-convnext-s"
    config = UperNetConfig(
        backbone_config=backbone, num_labels=3, hidden_size=16, auxiliary_channels=8, pool_scales=[1, 2],
        auxiliary_in_channels=backbone.hidden_sizes[2],
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    model.save_pretrained(tmp_path)
    card = decoder_card(model)
    assert_valid(card, caplog)
    assert card.data.base_model == "facebook/EUPE-ConvNeXt-S"
    loaded = run(snippets(card)[0].replace('"PATH"', repr(str(tmp_path))), {})["model"]
    assert torch.equal(loaded.decode_head.classifier.weight, model.decode_head.classifier.weight)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["model_type"] == "eupe"
    model.push_to_hub("me/decoder")
    card.push_to_hub("me/decoder")
    assert ModelCard.load("me/decoder").data.license_name == WEIGHTS_LICENSE["license_name"]
