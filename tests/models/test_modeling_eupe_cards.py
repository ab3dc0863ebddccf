# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Cards hold names from outside: of bases, classes, data, settings. They come out as text, never as markup or code."""

import ast
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from modeling_common import tiny_config
from vlm_common import make_vlm

from eupe_hf import EupeForImageClassification, EupeForSegmentation, EupeLlavaForConditionalGeneration
from eupe_hf.evaluation import EvaluationResult
from eupe_hf.lora import adapter_card, lora_config
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.models.modeling_eupe_cards import as_text, head_card, hub_id, llava_card, model_card
from eupe_hf.training.report import recipe_card


HOSTILE = (
    'a/b");__import__("os").system("id");("',
    "a\n---\nlicense: mit\n---\n# Heading",
    "```\n```python\nimport os\nos.system('id')\n```",
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "![x](https://evil.example/x.png) [y](javascript:alert(1))",
    "https://evil.example www.evil.example me@evil.example",
    "| a | b |\n|---|---|\n| c | d |",
    "a|b\\|c\\",
    "{{ 7 * 7 }}{% raw %}",
    "_a_ __b__ *c* ~~d~~ $e$ `f` &lt;g&gt; &#60;",
    "- x", "1. x", "1) x", "# x", "> x", "===", "---", "    x", "\t", "'x': [\"y\"]", "!!python/object:os.system",
    "\u202egnp.exe \u2028 \x1b[31m \x00",
    "Zürich 日本 'n' b;c",
)  # fmt: skip
BY_VALUE = pytest.mark.parametrize("value", HOSTILE)
PLAIN = "leaves"


def parse(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)


def shown(value: str) -> str:
    """What a reader sees of a value: one line, without what can't be printed."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())


@BY_VALUE
@pytest.mark.parametrize("frame", ["{}", "- {}", "# {}", "Before {} after.", "[{}](https://huggingface.co/x)"])
def test_value_is_shown_as_it_is(value: str, frame: str) -> None:
    if not shown(value):
        assert as_text(value) == ""
        return
    kinds = [[token.type for token in parse(frame.format(text))] for text in (as_text(value), PLAIN)]
    assert kinds[0] == kinds[1]
    children = next(token.children for token in parse(frame.format(as_text(value))) if token.type == "inline")
    assert {child.type for child in children} <= {"text", "link_open", "link_close"}
    found = "".join(child.content for child in children)
    assert found == frame.format("\0").strip("-# ").replace("[\0](https://huggingface.co/x)", "\0").replace(
        "\0", shown(value)
    )


@BY_VALUE
def test_value_stays_in_its_cell(value: str) -> None:
    tokens = parse(f"| name | value |\n|---|---|\n| {as_text(value)} | 1 |\n")
    cells = [token.content for token in tokens if token.type == "inline"]
    assert len(cells) == 4 and cells[3] == "1"
    assert [token.type for token in tokens].count("tr_open") == 2


def test_common_values_stay_readable() -> None:
    for value in (
        "mIoU",
        "0.75",
        "1e-05",
        "learning_rate",
        "q_proj, k_proj",
        "someone/leaves",
        "Photos (2), 50 % a=b",
    ):
        assert as_text(value) == value


@BY_VALUE
def test_what_cannot_be_a_repository_is_none(value: str) -> None:
    assert hub_id(value) is None


def test_repositories_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("someone/leaves") == "someone/leaves" and hub_id("EUPE-S") == "facebook/EUPE-ViT-S"
    (tmp_path / "someone" / "leaves").mkdir(parents=True)
    for name in ("someone/leaves", "leaves", "/a/b", "a/b/c", "", None, "../a", "a/b c", "a/"):
        assert hub_id(name) is None


def test_classes_are_named_in_the_configuration_alone(tmp_path: Path) -> None:
    names = dict(enumerate(HOSTILE))
    EupeForImageClassification(tiny_config("vit", id2label=names)).save_pretrained(tmp_path)
    again = EupeForImageClassification.from_pretrained(tmp_path)
    assert again.config.id2label == names
    card, plain = ModelCard.load(tmp_path / "README.md"), model_card(task_model("vit"))
    assert card.text == plain.text and card.data.to_dict() == plain.data.to_dict()


# ---- every kind of card, with a value in all places that come from outside ----


@functools.cache
def task_model(family: str) -> EupeForImageClassification:
    return EupeForImageClassification(tiny_config(family))


@functools.cache
def vision_language_model() -> EupeLlavaForConditionalGeneration:
    return make_vlm("vit")[0]


def adapter(value: str, folder: Path) -> ModelCard:
    """An adapter's folder whose files hold the value wherever text can stand."""
    lora_config(task_model("vit"), r=2).save_pretrained(folder)
    path = folder / "adapter_config.json"
    names = ("base_model_name_or_path", "lora_alpha", "r", "lora_dropout", "peft_version")
    lora = {**json.loads(path.read_text()), **dict.fromkeys(names, value), "modules_to_save": [value]}
    path.write_text(json.dumps({**lora, "target_modules": [value]}))
    metric = EvalResult(
        task_type="x", dataset_type=value, dataset_name=value, metric_type=value, metric_value=value, metric_name=value
    )
    return adapter_card(folder, dataset=[value], metrics=[metric], name=value)


def adapter_of_unknown_class(value: str, folder: Path) -> ModelCard:
    adapter(value, folder)
    (folder / "eupe_config.json").write_text(json.dumps({"architectures": [value]}))
    return adapter_card(folder)


def trained_model(value: str, folder: Path) -> ModelCard:
    model = task_model("vit")
    model.config.name_or_path = value
    settings = {"encoder": value, value: value}
    result = EvaluationResult("classification", value, value, value, 3, {value: 0.5}, settings, dataset_config=value)
    return recipe_card(folder, model, [result])


def encoder(value: str, folder: Path) -> ModelCard:
    model = task_model("convnext")
    model.config.name_or_path = value
    return model_card(model, [value])


def head(value: str, folder: Path) -> ModelCard:
    config = tiny_config("vit", id2label={0: value})
    config.name_or_path = value
    return head_card(EupeForSegmentation, config, value)


def vlm(value: str, folder: Path) -> ModelCard:
    model = vision_language_model()
    config = model.config
    config.vision_config.name_or_path = config.text_config.name_or_path = value
    config.text_config.model_type = value
    return llava_card(model, [value])


@BY_VALUE
@pytest.mark.parametrize("make", [adapter, adapter_of_unknown_class, trained_model, encoder, head, vlm])
def test_cards_hold_values_as_text(make: Callable[[str, Path], ModelCard], value: str, tmp_path: Path) -> None:
    card, plain = make(value, tmp_path / "a"), make(PLAIN, tmp_path / "b")
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.text == card.text and again.data.to_dict().keys() == plain.data.to_dict().keys()
    metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", again.content, re.DOTALL)[1])
    assert {key: metadata[key] for key in WEIGHTS_LICENSE} == WEIGHTS_LICENSE
    assert "base_model" not in metadata
    tokens = parse(again.text)
    if shown(value):
        assert [token.type for token in tokens] == [token.type for token in parse(plain.text)]
    for token in tokens:
        assert not token.type.startswith("html")
        for child in token.children or ():
            assert not child.type.startswith(("html", "image"))
            assert child.type != "link_open" or str(child.attrs["href"]).startswith("https://huggingface.co/")
    codes = [token.content for token in tokens if token.type == "fence"]
    assert len(codes) == plain.text.count("```python")
    calls = [node for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    attributes = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
    assert names <= {"load_peft_model", "print"} and "system" not in attributes
