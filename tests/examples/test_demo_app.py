# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The demo app: what it reads, encodes and draws; and the page in a real browser."""

import configparser
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub import SpaceCard
from modeling_common import tiny_config
from odd_pictures import BAD, GOOD
from PIL import Image
from test_examples import PHOTO

from eupe_hf import VARIANTS, EupeBackbone, EupeForMultiTask, EupeImageProcessor, EupeModel
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.visualization.predictions import Predictor


gradio = pytest.importorskip("gradio", reason="gradio is not installed")
DEMO = ROOT / "examples" / "demo_app"
sys.path.insert(0, str(DEMO))
import app as demo_app  # noqa: E402
from encoders import Encoder, load_encoders, patch_at, similarity  # noqa: E402
from photographs import open_photograph  # noqa: E402


ASTRONAUT, CHELSEA = PHOTO.with_name("astronaut.jpg"), PHOTO.with_name("chelsea.jpg")
FAMILIES = pytest.mark.parametrize("family", ["vit", "convnext"])


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app takes an accelerator where there is one; what is compared with here does not."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def encoder_of(family: str, name: str = "tiny") -> Encoder:
    torch.manual_seed(0)
    return Encoder(name, EupeBackbone(tiny_config(family, layerscale_value=1.0)), EupeImageProcessor())


def count_passes(encoder: Encoder) -> list[int]:
    """A list that gets the input size of each forward pass of the encoder from now on."""
    passes: list[int] = []
    encoder.model.base_model.register_forward_hook(lambda _, inputs, kwargs, __: passes.append(
        (inputs[0] if inputs else kwargs["pixel_values"]).shape[-1]), with_kwargs=True)  # fmt: skip
    return passes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder and a multi-task model on it."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    EupeModel(tiny_config("convnext", layerscale_value=0.5)).save_pretrained(folder / "encoder")
    heads = {
        "scene": {"task": "classification", "id2label": {0: "kitchen", 1: "garden"}},
        "far": {"task": "depth"},
        "parts": {"task": "segmentation", "id2label": {0: "cup", 1: "table"}},
        "things": {"task": "detection", "num_labels": 2},
    }
    model = EupeForMultiTask.from_pretrained(folder / "encoder", heads=heads)
    model.save_pretrained(folder / "multi")
    model.task_model("far").save_pretrained(folder / "far")
    return folder


def test_space_card_is_valid() -> None:
    card = SpaceCard.load(DEMO / "README.md")
    data = card.data
    assert (data.sdk, data.license, data.sdk_version) == ("gradio", "apache-2.0", gradio.__version__)
    assert (DEMO / data.app_file).is_file()
    assert {data.colorFrom, data.colorTo} <= {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert data.title and data.emoji and 0 < len(data.short_description) <= 60  # the Hub takes no more
    assert data.models == [VARIANTS["eupe-s"].repo_id] and "EUPE" in data.tags
    assert WEIGHTS_LICENSE["license_name"] in card.text and WEIGHTS_LICENSE["license_link"] in card.text
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].split("\n")
    listed = [line for line in (DEMO / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(needed) - set(listed) == {"", "typer"} and set(listed) <= set(needed)  # typer: the command line's


def test_photographs_are_read_upright_and_in_full(tmp_path: Path) -> None:
    plain = Image.open(CHELSEA)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    plain.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    plain.convert("RGBA").save(tmp_path / "rgba.png")
    expected = open_photograph(CHELSEA)
    assert expected.picture.size == (512, 341)
    for name in ("turned.png", "rgba.png"):
        found = open_photograph(tmp_path / name)
        assert np.array_equal(np.asarray(found.picture), np.asarray(expected.picture)), name
        assert found != expected  # another file
    (tmp_path / "copy.jpg").write_bytes(CHELSEA.read_bytes())
    assert open_photograph(tmp_path / "copy.jpg") == expected
    levels = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey16.png")
    grey = np.asarray(open_photograph(tmp_path / "grey16.png").picture)
    assert grey.shape == (384, 512, 3) and grey[0, 0, 0] < 3 and grey[-1, -1, 0] > 252 and 110 < grey.mean() < 145
    Image.new("RGB", (1, 1), "red").save(tmp_path / "pixel.png")
    assert open_photograph(tmp_path / "pixel.png").picture.getcolors() == [(512 * 512, (255, 0, 0))]
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    assert open_photograph(tmp_path / "line.png").picture.size == (512, 32)


@pytest.mark.parametrize("name", GOOD | BAD)
def test_pictures_as_real_files_are_are_shown_or_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((GOOD | BAD)[name])
    if name in BAD:
        with pytest.raises(ValueError, match=rf"^{name} (can't be read: it is damaged|.* has values from 0 to 4080)"):
            open_photograph(tmp_path / name)
        return
    picture = open_photograph(tmp_path / name).picture
    assert picture.mode == "RGB" and max(picture.size) == 512


def test_what_cannot_be_shown_gets_a_one_line_message(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(CHELSEA.read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "<b>.png").write_text("no image")
    Image.new("1", (10_000, 7000)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # Pillow itself refuses it
    page = demo_app.App({"tiny": encoder_of("vit")})
    for name, words in {
        "cut.jpg": "cut.jpg can&#x27;t be read: it is damaged or not an image.",
        "empty.png": "empty.png can&#x27;t be read",
        "<b>.png": "&lt;b&gt;.png can&#x27;t be read",
        "gone.png": "gone.png can&#x27;t be read",
        "large.png": "large.png has more than 64 million pixels: choose a smaller image.",
        "bomb.png": "bomb.png has more than 64 million pixels",
    }.items():
        photograph, point, problem, upload = page.read(str(tmp_path / name))
        assert photograph is None and upload is None and point == demo_app.START
        assert words in problem.value and problem.visible and str(tmp_path) not in problem.value
    drawn = page.draw(None, demo_app.START, 128, "tiny", demo_app.NO_ENCODER)
    assert drawn[0] is None and drawn[2] == "" and drawn[3].value is None and drawn[4] is None
    photograph, _, problem, _ = page.read([str(CHELSEA)])  # as the gallery gives it
    assert photograph == open_photograph(CHELSEA) and not problem.visible


@FAMILIES
def test_click_compares_with_the_patch_under_it(family: str) -> None:
    encoder = encoder_of(family)
    page, photograph = demo_app.App({"tiny": encoder}), open_photograph(CHELSEA)  # 512 x 341 pixels
    stride = {"vit": 16, "convnext": 32}[family]
    count = 256 // stride
    assert encoder.see(photograph, 256).feature_map.shape[1:] == (count, count)
    for x, y in ((0, 0), (511, 340), (400, 30), (100, 300)):
        event = SimpleNamespace(index=[x, y])
        point, shown, heat, other = page.click(event, photograph, 256, "tiny", demo_app.NO_ENCODER)
        row, column = patch_at(point, encoder.see(photograph, 256).feature_map)
        assert (row, column) == (y * count // 341, x * count // 512)
        corner = (int(column * 512 / count) + 1, int(row * 341 / count) + 1)
        assert shown.getpixel(corner) == (255, 255, 255)  # the frame
        assert photograph.picture.getpixel(corner) != (255, 255, 255)
        _, lowest = similarity(photograph, encoder.see(photograph, 256), point)
        assert heat.label == f"Cosine to the framed patch: {lowest:.2f} (blue) to 1 (yellow)" and -1 <= lowest < 0.9
        assert other.value is None


def test_a_click_needs_no_second_pass(tmp_path: Path) -> None:
    encoders = {family: encoder_of(family, family) for family in ("vit", "convnext")}
    passes = {name: count_passes(encoder) for name, encoder in encoders.items()}
    page, photograph = demo_app.App(encoders), open_photograph(CHELSEA)
    page.draw(photograph, demo_app.START, 128, "vit", "convnext")
    heats = [page.click(SimpleNamespace(index=[x, 9]), photograph, 128, "vit", "convnext")[2] for x in (9, 400)]
    assert np.asarray(Image.open(heats[0].value["path"])).tobytes() != Image.open(heats[1].value["path"]).tobytes()
    assert passes == {"vit": [128], "convnext": [128]}
    page.draw(photograph, demo_app.START, 160, "vit", demo_app.NO_ENCODER)
    page.draw(open_photograph(PHOTO), demo_app.START, 160, "vit", "convnext")
    (tmp_path / "again.jpg").write_bytes(CHELSEA.read_bytes())  # the same photograph, uploaded again
    page.draw(open_photograph(tmp_path / "again.jpg"), demo_app.START, 128, "vit", "convnext")
    assert passes == {"vit": [128, 160, 160], "convnext": [128, 160]}


def test_heads_say_in_one_pass_what_predict_says(saved: Path) -> None:
    encoders = load_encoders([str(saved / "multi"), str(saved / "far")], [], [])
    assert {name: list(one.heads) for name, one in encoders.items()} == {
        "multi": ["far", "parts", "scene", "things"],
        "far": ["depth"],
    }
    assert not any(one.random_part for one in encoders.values())
    passes, photograph = count_passes(encoders["multi"]), open_photograph(ASTRONAUT)
    sight = encoders["multi"].see(photograph, 128)
    assert passes == [128]
    predictions = Predictor(str(saved / "multi"), size=128)(ASTRONAUT)  # 512 pixels wide, as the app shows it
    for name, prediction in predictions.items():
        assert np.array_equal(np.asarray(sight.predictions[name]), np.asarray(prediction.picture())), name
    page = demo_app.App(encoders)
    assert page.warning() == "" and page.max_heads == 4
    column = page.draw_column(photograph, demo_app.START, 128, "far")
    assert [head.visible for head in column[4:]] == [True, False, False, False] and column[4].label == "Head: depth"
    assert "<h3>far</h3><p><b>" in column[1] and "128 x 128 pixels (4 x 4 patches) on CPU" in column[1]
    assert sight.milliseconds > 0


def test_random_weights_are_said(saved: Path) -> None:
    encoders = load_encoders([str(saved / "encoder"), str(saved / "far")], ["eupe-t"], ["segmentation"])
    parts = {name: one.random_part for name, one in encoders.items()}
    assert parts == {"encoder": "heads", "far": "", "eupe-t (random)": "encoder and heads"}
    page = demo_app.App(encoders)
    assert "<b>RANDOM WEIGHTS</b> (encoder: heads; eupe-t (random): encoder and heads)." in page.warning()
    photograph = open_photograph(CHELSEA)
    headings = {name: page.draw_column(photograph, demo_app.START, 128, name)[1] for name in encoders}
    assert {name for name, heading in headings.items() if "RANDOM WEIGHTS" in heading} == {
        "encoder",
        "eupe-t (random)",
    }
    (alone,) = load_encoders([], ["eupe-convnext-t"], []).values()
    assert alone.random_part == "encoder" and not alone.heads
    assert alone.see(photograph, 128).feature_map.shape == (768, 4, 4)


def test_command_line_refuses_what_it_cannot_load(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    encoder = str(saved / "encoder")
    for options, words in (
        (["--model", str(tmp_path / "nothing" / "here")], "There is no model at"),
        (["--model", "eupe-q"], "Unknown EUPE model 'eupe-q'"),
        (["--model", str(tmp_path / "adapter")], "adapter"),
        (["--model", encoder, encoder, encoder], "Name each model once"),
        (["--model", encoder, "--size", "100"], "invalid choice: 100"),
        (["--random", "eupe-x"], "invalid choice: 'eupe-x'"),
        (["--model", encoder, "--device", "abacus"], "The device 'abacus' is not available on this machine: choose"),
    ):
        monkeypatch.setattr(sys, "argv", ["app.py", *options])
        with pytest.raises(SystemExit) as exit_:
            demo_app.main()
        assert exit_.value.code == 2 and words in capsys.readouterr().err, options


@pytest.mark.slow
def test_no_weights_are_an_error_not_a_random_model(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, DEMO / "app.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("app.py: eupe-s was not found.") and len(result.stderr.splitlines()) == 1
    assert result.stderr.endswith("To run the app without weights: --random eupe-t.\n")


# ---- in a browser ----

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# The app itself with every address but this machine's shut off, as the tests have it.
OFFLINE_APP = """
import runpy, sys, pytest_socket
pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, laid out as in a Space and with random encoders, on a port of its own."""
    folder = tmp_path_factory.mktemp("app")
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(DEMO, folder / "space", ignore=without_caches)
    shutil.copytree(PHOTO.parent, folder / "space" / "images")
    shutil.copytree(ROOT / "src" / "eupe_hf", folder / "space" / "eupe_hf", ignore=without_caches)
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", OFFLINE_APP, "--random", "eupe-t", "eupe-convnext-t", "--heads", "depth"]
    log = folder / "log.txt"
    with log.open("w") as file:
        app = subprocess.Popen(
            [*command, "--size", "256"], cwd=folder / "space", env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while "http://127.0.0.1:" not in log.read_text():
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield next(word for word in log.read_text().split() if word.startswith("http://127.0.0.1:"))
    finally:
        app.terminate()
        app.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Any]:
    """The page in a fresh profile of Chromium; afterwards, that nothing was asked of elsewhere or went wrong."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        page = browser.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert len(asked) > 20 and errors == []
    elsewhere = {url for url in asked if not url.startswith(("data:", "blob:"))}
    assert {urlsplit(url).hostname for url in elsewhere} == {"127.0.0.1"}


def picture(page: Any, selector: str, other_than: str = "") -> tuple[str, Image.Image]:
    """Address and pixels of a picture on the page, once it has changed."""
    from playwright.sync_api import expect

    image = page.locator(f"{selector} img")
    if other_than:
        expect(image).not_to_have_attribute("src", other_than)
    image.scroll_into_view_if_needed()
    source = image.get_attribute("src")
    return source, Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
def test_page_shows_compares_and_answers(page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    # 1. It opens on an example, and says what is random.
    expect(page.locator("#encoder-0 h3")).to_have_text("eupe-t (random)", timeout=60_000)
    expect(page.locator(".random").first).to_contain_text("RANDOM WEIGHTS (eupe-t (random): encoder and heads;")
    assert picture(page, "#photograph")[1].size == (512, 512)
    first_heat, _ = picture(page, "#encoder-0 .heat")
    assert page.locator("#encoder-1").is_hidden()
    # 2. An upload is shown.
    page.set_input_files("#upload input[type=file]", CHELSEA)
    heat, heat_pixels = picture(page, "#encoder-0 .heat", first_heat)
    components, components_pixels = picture(page, "#encoder-0 .components")
    assert heat_pixels.size == components_pixels.size == picture(page, "#photograph")[1].size == (512, 341)
    assert len(components_pixels.resize((16, 16)).getcolors()) > 50
    depth = page.locator("#encoder-0 .head").filter(has_text="Head: depth")
    expect(depth.locator("img")).to_be_visible()
    expect(page.locator("#encoder-0 p")).to_contain_text("for one forward pass of 256 x 256 pixels (16 x 16 patches)")
    # 3. A click moves the comparison: the frame is where the click was, and the heat another.
    box = page.locator("#photograph img").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"])
    moved, moved_pixels = picture(page, "#encoder-0 .heat", heat)
    corner = (int(0.9 * 16) * 32 + 1, round(int(0.8 * 16) * 341 / 16) + 1)
    assert moved_pixels.getpixel(corner) > (230, 230, 230) and heat_pixels.getpixel(corner) < (230, 230, 230)
    assert np.abs(np.asarray(moved_pixels, float) - np.asarray(heat_pixels, float)).mean() > 10
    assert page.locator("#encoder-0 .components img").get_attribute("src") == components
    # 4. A second encoder stands beside the first, compared at the same point.
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="eupe-convnext-t (random)").click()
    expect(page.locator("#encoder-1 p")).to_contain_text("256 x 256 pixels (8 x 8 patches) on")
    assert page.locator("#encoder-1 p b").inner_text().endswith(" ms")
    left, right = (page.locator(f"#encoder-{i}").bounding_box() for i in range(2))
    assert left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
    _, other = picture(page, "#encoder-1 .heat")
    assert other.getpixel((int(0.9 * 8) * 64 + 1, round(int(0.8 * 8) * 341 / 8) + 1)) > (230, 230, 230)
    assert page.locator("#encoder-0 .heat img").get_attribute("src") == moved
    # 5. Another size is encoded again, in whole patches.
    page.get_by_label("number input for Input size, pixels").fill("140")
    page.keyboard.press("Tab")
    expect(page.locator("#encoder-0 p")).to_contain_text("128 x 128 pixels (8 x 8 patches)")
    # 6. A file that is not an image gets a one-line message, and an example recovers from it.
    (tmp_path / "broken.jpg").write_bytes(CHELSEA.read_bytes()[:3000])
    page.set_input_files("#upload input[type=file]", tmp_path / "broken.jpg")
    expect(page.get_by_role("alert")).to_contain_text("broken.jpg can't be read: it is damaged or not an image.")
    expect(page.locator("#photograph img")).to_have_count(0)
    page.locator("#examples button").last.click()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("#encoder-1 h3")).to_have_text("eupe-convnext-t (random)")
    assert picture(page, "#photograph")[1].size == (512, 341)
