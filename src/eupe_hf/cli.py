# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `eupe` command, on typer.

Exit codes of every command: 0 done; 1 a comparison failed; 2 bad input, with a one-line message; 3 done, but for
images that can't be read, which are named on stderr; 130 after Ctrl-C, and 141 if nobody reads the output any more,
both without a word. What is written follows the rule in `staging.py`.
"""

import enum
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from .models.configuration_eupe import WEIGHTS_LICENSE
from .variants import VARIANTS, variant_config


app = typer.Typer(
    name="eupe",
    help="EUPE encoders: download, convert, verify, compute and search features, predict, visualize.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # --batch_size is understood as --batch-size, and so are all options of two words
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, ... [default: the accelerator, else cpu]")]
Images = Annotated[list[Path], typer.Argument(help="Images, and folders of images.")]
Model = Annotated[str, typer.Option(help="A short name, a Hub id, or the folder of a model or adapter.")]
Overwrite = Annotated[bool, typer.Option(help="Replace what exists.")]
Strict = Annotated[bool, typer.Option(help="Stop at an image that can't be read.")]
Size = Annotated[int | None, typer.Option(help="Resize images to this side in pixels [default: the model's size]")]


class Target(str, enum.Enum):
    """The layout that `eupe convert` writes."""

    eupe = "eupe"
    raw = "raw"
    dinov3 = "dinov3"


def main() -> None:
    """Run the command. Bad input exits with code 2 and a one-line message on stderr."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # loading takes no time; `features` shows one
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names come out as they are, also where they are not UTF-8
        encoding = "utf-8" if sys.stdout.encoding == "ascii" else None  # click would write ? in ASCII
        sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"eupe: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer's code is 1, which is a comparison that failed
            sys.exit(141)
        raise


def _readable(results: Iterable[Any], total: int, strict: bool) -> Iterator[Any]:
    """The results of the images that could be read; at the end, `_report_skipped` tells of the others."""
    from .data.rows import UnreadableError

    skipped: list[str] = []
    for result in results:
        if not isinstance(result, UnreadableError):
            yield result
        elif strict:
            raise result
        else:
            skipped.append(str(result))
    _report_skipped(skipped, total)


def _report_skipped(skipped: Sequence[str], total: int) -> None:
    """Name the images of `total` that could not be read, and end with exit code 3; with 2 if none could."""
    if skipped and len(skipped) == total:
        raise ValueError(skipped[0] if total == 1 else f"None of {total} images can be read. {skipped[0]}")
    if skipped:
        title = f"Skipped {len(skipped)} of {total} images that can't be read:"
        typer.echo("\n".join([title, *skipped]), err=True)
        raise typer.Exit(3)


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the six published encoders.

    Example: eupe list
    """
    rows: list[dict[str, Any]] = [
        {
            "name": name, "parameters": variant.num_parameters, "width": variant_config(name).hidden_size,
            "stride": variant_config(name).patch_size, "repository": variant.repo_id,
        }
        for name, variant in VARIANTS.items()
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(f"{'name':<17}{'parameters':>11}{'width':>7}{'stride':>8}  repository")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:.1f} M"
        typer.echo(f"{row['name']:<17}{millions:>11}{row['width']:>7}{row['stride']:>8}  {row['repository']}")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="The short name of a published encoder, see eupe list.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    force: Annotated[bool, typer.Option(help="Download and convert again.")] = False,
) -> None:
    """Download an encoder, convert it if necessary, and print its folder.

    Example: eupe pull eupe-s
    """
    from .hub.fetch import fetch

    typer.echo(fetch(name, revision=revision, force_download=force, verify=True))
    license_name, link = WEIGHTS_LICENSE["license_name"], WEIGHTS_LICENSE["license_link"]
    typer.echo(f"The weights are under the {license_name}: {link}", err=True)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint in any layout, a saved model or adapter, or features.")],
    as_json: AsJson = False,
) -> None:
    """Show what a file or folder holds.

    Example: eupe info EUPE-ViT-S.pt
    """
    from .conversion.inspect import describe

    _print(describe(path), as_json)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file or folder in any of the three layouts.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; with --to raw the file.")],
    to: Annotated[Target, typer.Option(help="The layout: this package's, as published, or DINOv3's.")] = Target.eupe,
    variant: Annotated[str | None, typer.Option(help="Fail unless it is this model of the six.")] = None,
    head: Annotated[Path | None, typer.Option(help="An upstream head to join; with --to raw, to write.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of the head: segmentation or depth.")] = None,
    layers: Annotated[str | None, typer.Option(help="The head's layers, from 0, as 2,5,8 [default: the last]")] = None,
    keep_projectors: Annotated[bool, typer.Option("--keep-projectors", help="Keep distillation adapters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint between the three layouts, and prove that no tensor changed.

    Example: eupe convert EUPE-ViT-S.pt my-eupe-s
    """
    from . import conversion

    if layers is not None and not re.fullmatch(r"\d+(,\d+)*", layers):
        raise ValueError(f"--layers must be numbers from 0 separated by commas, as 2,5,8,11, got {layers!r}.")
    chosen = [int(layer) for layer in layers.split(",")] if layers else None
    if to is not Target.eupe and (task or layers or keep_projectors):
        raise ValueError(f"--task, --layers, --keep-projectors need --to eupe: leave them out, got --to {to.value}.")
    try:
        if to is Target.eupe:
            options: dict[str, Any] = {"head": head, "task": task, "layers": chosen}
            done = conversion.convert_checkpoint(
                checkpoint, output, variant=variant, keep_projectors=keep_projectors, **options
            )
        else:
            done = conversion.convert_to_layout(checkpoint, output, layout=to.value, variant=variant, head=head)
    except conversion.ConversionError as error:
        done = error.conversion
    text = json.dumps(done.values()) if as_json else "\n".join(done.lines())
    typer.echo(text, err=not (done.is_equal or as_json))
    if not done.is_equal:
        raise typer.Exit(1)


@app.command()
def verify(
    checkpoint: Annotated[Path, typer.Argument(help="The encoder, in any of the three layouts.")],
    against: Annotated[Path | None, typer.Option(help="Another checkpoint, in any layout.")] = None,
    golden: Annotated[Path | None, typer.Option(help="Or outputs recorded from the original code.")] = None,
    variant: Annotated[str | None, typer.Option(help="Fail unless it is this model of the six.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest absolute error to accept.")] = 1e-4,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Check that an encoder computes the same as another, or as the original code. Exit code 1: it does not.

    Example: eupe verify my-eupe-s --against EUPE-ViT-S.pt
    """
    from . import conversion
    from .conversion.verification import format_table

    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"--tolerance must be 0 or more, got {tolerance}.")
    rows = conversion.verify(checkpoint, against, golden=golden, variant=variant, device=device)
    result = conversion.summary(rows, tolerance)
    typer.echo(json.dumps(result) if as_json else format_table(rows, tolerance))
    if not result["is_equal"]:
        raise typer.Exit(1)


@app.command()
def features(
    images: Images,
    output: Annotated[Path, typer.Option(help="The .parquet file to write.")],
    model: Model = "eupe-s",
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    strict: Strict = False,
    overwrite: Annotated[bool, typer.Option(help="Start again, and replace an existing file.")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Compute the global feature of every image. Repeat a stopped run and it continues.

    Example: eupe features photos/ --output photos.parquet
    """
    from .data.images import find_images
    from .features.extraction import save_features
    from .loading import load_encoder, load_processor

    paths = list(map(str, find_images(images)))  # text takes a third of the memory of a Path
    encoder: PreTrainedModel = load_encoder(model, device)
    processor = load_processor(model, size)
    transformers_logging.enable_progress_bar()
    done = save_features(encoder, processor, paths, output, batch_size, workers, strict, overwrite)
    summary = {"output": str(output), "images": done.count, "skipped": len(done.skipped), "resumed": done.resumed}
    _print(summary, as_json)
    _report_skipped(list(done.skipped.values()), done.count + len(done.skipped))


@app.command()
def search(
    query: Annotated[Path, typer.Argument(help="An image.")],
    index: Annotated[Path, typer.Option(help="A file or folder of features, or a folder of images.")],
    model: Annotated[str | None, typer.Option(help="The encoder [default: the one of the index, else eupe-s]")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of images to find.")] = 10,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find the images most similar to a query, by the cosine of global features.

    Example: eupe search photo.jpg --index photos.parquet
    """
    from .features import compute_features, find_images, nearest_images, read_features
    from .loading import load_encoder, load_processor

    if not query.is_file():
        raise FileNotFoundError(f"There is no image {query}.")
    known = None if index.is_dir() and not any(index.glob("*.parquet")) else read_features(index)
    name = model or (known.model if known else "") or "eupe-s"
    encoder: PreTrainedModel = load_encoder(name, device)
    processor = load_processor(name)
    known = known or compute_features(encoder, processor, find_images([index]))
    _report_skipped(list(known.skipped.values()) if not known.paths else [], len(known.skipped))
    with torch.inference_mode():
        feature = encoder(**processor(query, return_tensors="pt").to(encoder.device)).pooler_output[0].cpu()
    found = nearest_images(known, feature, count)
    if as_json:
        typer.echo(json.dumps([{"path": path, "similarity": similarity} for path, similarity in found]))
    else:
        for path, similarity in found:
            typer.echo(f"{similarity:.4f}  {path}")
    _report_skipped(list(known.skipped.values()), len(known.paths) + len(known.skipped))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A task or multi-task model, or adapter; or an encoder with --task.")],
    images: Images,
    task: Annotated[str | None, typer.Option(help="For an encoder: the new head, with random weights.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    size: Size = None,
    threshold: Annotated[float, typer.Option(help="Detection: lowest score of a box.")] = 0.5,
    strict: Strict = False,
    overwrite: Overwrite = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a task model predicts for images; with --json print it instead, one line per image.

    Example: eupe predict my-parts photo.jpg
    """
    from .data.images import find_images
    from .visualization.predictions import Predictor

    paths = find_images(images, left_out=None if as_json else output)
    predictor = Predictor(model, task, size, threshold, device)
    if predictor.is_random:
        typer.echo(f"{model} has no head for {task}: this one is new, with RANDOM weights.", err=True)
    for path in paths if strict else ():
        predictor.reader.read(path)  # before the first picture is written
    drawn = predictor.values(paths) if as_json else predictor.save_pictures(paths, output, images, overwrite)
    for result in _readable(drawn, len(paths), strict):
        typer.echo(json.dumps(result) if as_json else "\n".join(map(str, result)))


@app.command()
def visualize(
    images: Images,
    kind: Annotated[str, typer.Option(help="What to draw: pca, similarity, attention, matches.")] = "pca",
    model: Model = "eupe-s",
    size: Annotated[int, typer.Option(help="Resize images to this side in pixels: larger is finer.")] = 512,
    patch: Annotated[tuple[int, int] | None, typer.Option(help="Similarity: a patch, as ROW COLUMN.")] = None,
    layer: Annotated[int, typer.Option(help="Attention: the block, from 0, or from the end.")] = -1,
    tile: Annotated[int | None, typer.Option(help="Encode in tiles of this side, for large sizes.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    strict: Strict = False,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Draw what an encoder sees: principal components (colours agree between images), similarity, attention, matches.

    Example: eupe visualize photo.jpg other.jpg --kind pca
    """
    from .data.images import find_images
    from .visualization.encoders import draw

    options: dict[str, Any] = {"size": size, "patch": patch, "layer": layer, "tile": tile, "device": device}
    paths = find_images(images, left_out=output)
    drawn = draw(paths, output, kind=kind, model=model, sources=images, overwrite=overwrite, **options)
    for saved in _readable(drawn, len(paths), strict):
        typer.echo(saved)


if __name__ == "__main__":
    main()
