# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Explore photographs with EUPE in a browser: click a patch, compare two encoders, see what heads predict.

    python examples/demo_app/app.py --model eupe-s my-multitask

The page is served to this machine only, and needs nothing from the network. `--random eupe-t` runs it without the
published weights; the page then says RANDOM WEIGHTS.
"""

import argparse
import html
import sys
from pathlib import Path
from typing import Any

from encoders import SIDES, Encoder, framed, load_encoders, similarity, whole_patches
from photographs import Photograph, open_photograph
from transformers import logging as transformers_logging

from eupe_hf import VARIANTS
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS


try:
    import gradio as gr
except ImportError:
    sys.exit("app.py needs gradio, which is not installed: pip install 'eupe-hf[demo]'.")

HERE = Path(__file__).resolve().parent
START = (0.5, 0.3)  # the point to compare with before the first click, in shares of the sides
NO_ENCODER = "none"
PICTURE = {"interactive": False, "buttons": [], "min_width": 280}
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing to fetch


class App:
    """The page and its events.

    Args:
        encoders: The encoders to choose from, by name.
        size: Side of the input at the start, in pixels.
    """

    def __init__(self, encoders: dict[str, Encoder], size: int = 512):
        self.encoders = encoders
        self.max_heads = max(len(encoder.heads) for encoder in encoders.values())
        folders = (HERE / "images", HERE.parent / "images")  # in a Space, and in the repository
        self.examples = sorted(str(path) for folder in folders for path in folder.glob("*.jpg"))
        with gr.Blocks(title="What EUPE sees", analytics_enabled=False, delete_cache=(3600, 86400)) as self.page:
            self._lay_out(size)
            self._connect()

    def _lay_out(self, size: int) -> None:
        names, warning = list(self.encoders), self.warning()
        self.photograph, self.point = gr.State(), gr.State(START)
        gr.Markdown("# What EUPE sees\nClick a patch of the photograph to see how similar all others are.")
        gr.HTML(warning, visible=bool(warning), padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.shown = gr.Image(label="Photograph: click a patch", elem_id="photograph", **PICTURE)
                self.problem = gr.HTML("Choose a photograph.", visible=not self.examples, padding=False)
                self.upload = gr.File(label="Your photograph", file_types=["image"], height=150, elem_id="upload")
                self.gallery = gr.Dataset(
                    components=[gr.Image(type="filepath", visible=False)], samples=[[path] for path in self.examples],
                    label="Examples", visible=bool(self.examples), elem_id="examples",
                )  # fmt: skip
                first = gr.Dropdown(names, value=names[0], label="Encoder")
                second = gr.Dropdown([NO_ENCODER, *names], value=NO_ENCODER, label="Compare with")
                self.side = gr.Slider(SIDES.start, SIDES[-1], size, step=SIDES.step, label="Input size, pixels")
            with gr.Column(scale=5):
                with gr.Row():
                    self.columns = [self._column(f"encoder-{i}", visible=i == 0) for i in range(2)]
                gr.Markdown("Each encoder has its own principal components: don't compare colours between encoders.")
        self.chosen = [first, second]

    def _column(self, name: str, visible: bool) -> list[Any]:
        with gr.Column(visible=visible, min_width=300, elem_classes="encoder", elem_id=name) as column:
            heading = gr.HTML(padding=False)
            with gr.Row():
                heat = gr.Image(label="Similarity", elem_classes="heat", **PICTURE)
                components = gr.Image(label="Principal components", elem_classes="components", **PICTURE)
                heads = [gr.Image(visible=False, elem_classes="head", **PICTURE) for _ in range(self.max_heads)]
        return [column, heading, heat, components, *heads]

    def _connect(self) -> None:
        # one forward pass at a time: several would slow each other down, and the page shows times
        options = {"concurrency_id": "encoders", "concurrency_limit": 1, "api_visibility": "private"}
        read = {"fn": self.read, "outputs": [self.photograph, self.point, self.problem, self.upload], **options}
        inputs = [self.photograph, self.point, self.side, *self.chosen]
        draw = {"fn": self.draw, "inputs": inputs, "outputs": [self.shown, *self.columns[0], *self.columns[1]]}
        self.upload.upload(inputs=self.upload, **read).then(**draw, **options)
        self.gallery.click(inputs=self.gallery, **read).then(**draw, **options)
        if self.examples:
            self.page.load(inputs=gr.State(self.examples[:1]), **read).then(**draw, **options)
        gr.on([self.side.release, *(dropdown.change for dropdown in self.chosen)], **draw, **options)
        heats, components = ([column[place] for column in self.columns] for place in (2, 3))
        gr.on(
            [picture.select for picture in (self.shown, *heats, *components)], self.click,
            [self.photograph, self.side, *self.chosen], [self.point, self.shown, *heats],
            show_progress="hidden", **options,
        )  # fmt: skip

    def warning(self) -> str:
        """The banner that names random weights; empty if there are none."""
        parts = [f"{html.escape(one.name)}: {one.random_part}" for one in self.encoders.values() if one.random_part]
        return bool(parts) * (
            f"<div class='random'><b>RANDOM WEIGHTS</b> ({'; '.join(parts)}). They have learned nothing: the pictures "
            "show that the app works, not what a trained model sees.</div>"
        )

    def read(self, source: str | list[str]) -> list[Any]:
        """Read a file: the photograph, its first point, a message if it can't be read, and an empty upload field."""
        try:
            photograph, problem = open_photograph(Path(source if isinstance(source, str) else source[0])), ""
        except ValueError as error:
            photograph, problem = None, f"<div class='problem' role='alert'>{html.escape(str(error))}</div>"
        return [photograph, START, gr.HTML(problem, visible=bool(problem)), None]

    def draw(self, photograph: Photograph | None, point: tuple[float, float], size: float, *names: str) -> list[Any]:
        """Draw the photograph with its patch, and a column for each encoder."""
        size = whole_patches(size)
        columns = [self.draw_column(photograph, point, size, name) for name in names]
        shown = photograph and framed(photograph, self.encoders[names[0]].see(photograph, size), point)
        return [shown, *columns[0], *columns[1]]

    def click(self, event: gr.SelectData, photograph: Photograph, size: float, *names: str) -> list[Any]:
        """Draw what depends on the point."""
        size = whole_patches(size)
        width, height = photograph.picture.size
        point = (event.index[0] / width, event.index[1] / height)
        heats = [self.draw_similarity(photograph, point, size, name) for name in names]
        return [point, framed(photograph, self.encoders[names[0]].see(photograph, size), point), *heats]

    def draw_similarity(self, photograph: Photograph | None, point: tuple[float, float], size: int, name: str) -> Any:
        """Draw the heat map of one encoder."""
        if photograph is None or name == NO_ENCODER:
            return gr.Image(None, label="Similarity")
        picture, lowest = similarity(photograph, self.encoders[name].see(photograph, size), point)
        return gr.Image(picture, label=f"Cosine to the framed patch: {lowest:.2f} (blue) to 1 (yellow)")

    def draw_column(self, photograph: Photograph | None, point: tuple[float, float], size: int, name: str) -> list:
        """Draw one encoder: its column, heading, similarity, components and predictions."""
        hidden = gr.Image(None, visible=False)
        if photograph is None or name == NO_ENCODER:
            blank = self.draw_similarity(None, point, size, name)
            return [gr.Column(visible=name != NO_ENCODER), "", blank, None, *[hidden] * self.max_heads]
        encoder = self.encoders[name]
        sight = encoder.see(photograph, size)
        rows, columns = sight.feature_map.shape[1:]
        warning = f"<span class='random'>RANDOM WEIGHTS: {encoder.random_part}</span>" * bool(encoder.random_part)
        heading = (
            f"<h3>{html.escape(name)}</h3>{warning}<p><b>{sight.milliseconds:.0f} ms</b> for one forward pass of "
            f"{size} x {size} pixels ({rows} x {columns} patches) on {encoder.model.device.type.upper()}</p>"
        )
        heads = [gr.Image(picture, label=f"Head: {head}", visible=True) for head, picture in sight.predictions.items()]
        heads += [hidden] * (self.max_heads - len(heads))
        heat = self.draw_similarity(photograph, point, size, name)
        return [gr.Column(visible=True), heading, heat, sight.components, *heads]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/demo_app/app.py --model eupe-s eupe-convnext-t",
    )
    models = "encoders and task models: short names, Hub ids, folders (default: eupe-s, unless you give --random)"
    parser.add_argument("--model", nargs="+", default=[], help=models)
    random = f"encoders to build with RANDOM weights: {', '.join(VARIANTS)}"
    parser.add_argument("--random", nargs="+", default=[], choices=list(VARIANTS), metavar="NAME", help=random)
    heads = f"new heads, with RANDOM weights, for encoders without heads: {', '.join(TASK_MODELS)}"
    parser.add_argument("--heads", nargs="+", default=[], choices=list(TASK_MODELS), metavar="TASK", help=heads)
    size = "side of the input at the start: a multiple of 32 from 128 to 1024 (default: 512)"
    parser.add_argument("--size", type=int, default=512, choices=SIDES, metavar="PIXELS", help=size)
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args(arguments)


def main() -> None:
    """Load the models and serve the page."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = arguments.model or ([] if arguments.random else ["eupe-s"])
    try:
        app = App(load_encoders(names, arguments.random, arguments.heads, arguments.device), arguments.size)
        app.page.launch(
            server_port=arguments.port, share=False, ssr_mode=False, run_history=False, footer_links=[],
            max_file_size="64mb", theme=THEME, css_paths=HERE / "style.css",
        )  # fmt: skip
    except (ImportError, OSError, ValueError) as error:
        hint = " To run the app without weights: --random eupe-t." * (names != arguments.model)
        sys.stderr.write(f"app.py: {' '.join(str(error).split())}{hint}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
