# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `eupe` command. Exit codes: 0 done, 1 a comparison failed, 2 the input is wrong, which one sentence says.

typer, which transformers' own command line uses, so it is there anyway.
"""

import enum
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from transformers import logging as transformers_logging
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from .models.configuration_eupe import WEIGHTS_LICENSE
from .variants import VARIANTS, variant_config


app = typer.Typer(
    name="eupe",
    help="EUPE encoders: download, convert, check, compute features, predict, look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Model = Annotated[str, typer.Option(help="A short name, a Hub id or a folder.")]
Size = Annotated[Optional[int], typer.Option(help="Squash images to this side in pixels [default: the model's].")]  # noqa: UP045


class Kind(str, enum.Enum):
    """What `eupe visualize` draws."""

    pca = "pca"
    similarity = "similarity"
    attention = "attention"
    matches = "matches"


class Target(str, enum.Enum):
    """The layout that `eupe convert` writes."""

    eupe = "eupe"
    raw = "raw"
    dinov3 = "dinov3"


def main() -> None:
    """Run the command; a mistake of the user ends with exit code 2 and one sentence on stderr."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading, which takes no time; `features` has one
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"eupe: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def _tell(values: dict[str, Any], as_json: bool) -> None:
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
    name: Annotated[str, typer.Argument(help="A name of one of the six.")],
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit on the Hub.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option(help="Download and convert anew.")] = False,
) -> None:
    """Download an encoder, convert it if need be, and print its folder.

    Example: eupe pull eupe-s
    """
    from .hub.fetch import fetch

    typer.echo(fetch(name, revision=revision, force_download=force))
    typer.echo(
        f"The weights are under the {WEIGHTS_LICENSE['license_name']}: {WEIGHTS_LICENSE['license_link']}", err=True
    )


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A checkpoint in any layout, a saved model, adapter or feature file.")],
    as_json: AsJson = False,
) -> None:
    """Say what a file or folder is.

    Example: eupe info EUPE-ViT-S.pt
    """
    _tell(describe(path), as_json)


def describe(path: Path) -> dict[str, Any]:
    """What a file or folder is, by names that suit people and JSON.

    Raises:
        OSError: There is nothing.
        ValueError: It is nothing of EUPE.
    """
    from .conversion.checkpoints import load_checkpoint

    if path.is_dir() and (path / ADAPTER_CONFIG_NAME).is_file():
        lora = json.loads((path / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
        keys = {"base": "base_model_name_or_path", "rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
        return {"kind": f"{lora['peft_type']} adapter", **{name: lora.get(key) for name, key in keys.items()}}
    config = path / CONFIG_NAME
    fields = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if fields.get("model_type") == "eupe_multitask":
        return {"kind": "multi-task model", "heads": [f"{n} ({h['task']})" for n, h in fields["heads"].items()]}
    if fields.get("model_type") == "eupe_llava":
        kind = {"kind": "vision-language model", "language model": fields["text_config"]["model_type"]}
        return {**kind, "image tokens": fields["image_seq_length"]}
    if path.suffix == ".parquet" or _holds_features(path):
        return _describe_features(path)
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        if path.suffix != ".safetensors":
            raise
        try:
            return _describe_features(path)
        except ValueError:  # neither: what is wrong with the checkpoint says more
            raise error from None
    return {
        "kind": (fields.get("architectures") or ["encoder"])[0],
        "model": checkpoint.variant.name if checkpoint.variant is not None else "of another size than the six",
        "layout": checkpoint.layout,
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}),
        "tensors of a head": len(checkpoint.head),
        "tensors of distillation adapters": len(checkpoint.projectors),
    }


def _describe_features(path: Path) -> dict[str, Any]:
    from .features import read_features

    found = read_features(path)
    return {"kind": "features", "images": len(found.paths), "width": found.features.shape[-1], "model": found.model}


def _holds_features(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.parquet"))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A file or folder in any of the three layouts.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; with --to raw the file.")],
    to: Annotated[
        Target, typer.Option(help="The layout: this package's, the published files', or transformers' DINOv3's.")
    ] = Target.eupe,
    variant: Annotated[Optional[str], typer.Option(help="Fail unless it is this model of the six.")] = None,  # noqa: UP045
    head: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A head of upstream's: joined, with --task; or with --to raw or dinov3 written here."),
    ] = None,
    task: Annotated[Optional[str], typer.Option(help="What the head was trained for: segmentation, depth.")] = None,  # noqa: UP045
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the head reads, from 0, as 2,5,8,11 [default: the last block or stage]."),
    ] = None,
    keep_projectors: Annotated[
        bool, typer.Option("--keep-projectors", help="Keep the distillation adapters of some published files.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint between the three layouts, and prove that no tensor changed.

    Example: eupe convert EUPE-ViT-S.pt my-eupe-s
    """
    from . import conversion

    if layers is not None and not re.fullmatch(r"\d+(,\d+)*", layers):
        raise ValueError(f"--layers must be numbers from 0 with commas between, as 2,5,8,11, got {layers!r}.")
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
    against: Annotated[Optional[Path], typer.Option(help="Another checkpoint, in any layout.")] = None,  # noqa: UP045
    golden: Annotated[Optional[Path], typer.Option(help="Or outputs recorded from the original code.")] = None,  # noqa: UP045
    variant: Annotated[Optional[str], typer.Option(help="Fail unless it is this model of the six.")] = None,  # noqa: UP045
    tolerance: Annotated[float, typer.Option(help="Largest absolute error that passes.")] = 1e-4,
    as_json: AsJson = False,
) -> None:
    """Check that an encoder computes what another one does, or what the original code did. Exit code 1: it does not.

    Example: eupe verify my-eupe-s --against EUPE-ViT-S.pt
    """
    from . import conversion
    from .conversion.verification import format_table

    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"--tolerance must be 0 or more, got {tolerance}.")
    rows = conversion.verify(checkpoint, against, golden=golden, variant=variant)
    told = conversion.summary(rows, tolerance)
    typer.echo(json.dumps(told) if as_json else format_table(rows, tolerance))
    if not told["is_equal"]:
        raise typer.Exit(1)


@app.command()
def features(
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    output: Annotated[Path, typer.Option(help="A .safetensors or .parquet file.")],
    model: Model = "eupe-s",
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    strict: Annotated[bool, typer.Option(help="An image that can't be read is an error.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Begin anew, also where there is a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the global feature of every image. A run that was stopped goes on when it is repeated.

    Example: eupe features photos/ --output photos.parquet
    """
    from .features.extraction import find_images, save_features
    from .loading import load_encoder, load_processor

    paths = list(map(str, find_images(images)))  # text takes a third of the memory of a Path
    encoder, processor = load_encoder(model), load_processor(model, size)
    transformers_logging.enable_progress_bar()
    done = save_features(encoder, processor, paths, output, batch_size, workers, strict, overwrite)
    if done.skipped:
        typer.echo(
            f"Left out {len(done.skipped)} images that can't be read, first: {next(iter(done.skipped))}", err=True
        )
    told = {"output": str(output), "images": done.count, "skipped": len(done.skipped), "resumed": done.resumed}
    _tell(told, as_json)


@app.command()
def search(
    query: Annotated[Path, typer.Argument(help="An image.")],
    index: Annotated[Path, typer.Option(help="A file or folder of features, or a folder of images.")],
    model: Annotated[Optional[str], typer.Option(help="What computes features [default: the index's].")] = None,  # noqa: UP045
    count: Annotated[int, typer.Option(min=1, help="How many images to find.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find the images that are most similar to one, by the cosine of global features.

    Example: eupe search photo.jpg --index photos.parquet
    """
    from tempfile import TemporaryDirectory

    from .features import find_images, nearest_images, read_features, save_features
    from .loading import load_encoder, load_processor

    if not query.is_file():
        raise FileNotFoundError(f"There is no image {query}.")
    known = None if index.is_dir() and not _holds_features(index) else read_features(index)
    name = model or (known.model if known else "") or "eupe-s"
    encoder, processor = load_encoder(name), load_processor(name)
    with TemporaryDirectory() as scratch:
        if known is None:
            save_features(encoder, processor, find_images([index]), Path(scratch) / "index.safetensors")
            known = read_features(Path(scratch) / "index.safetensors")
        inputs = processor(query, return_tensors="pt").to(encoder.device)
        with torch.inference_mode():
            feature = encoder(**inputs).pooler_output[0].cpu()
    found = nearest_images(known, feature, count)
    if as_json:
        typer.echo(json.dumps([{"path": path, "similarity": similarity} for path, similarity in found]))
        return
    for path, similarity in found:
        typer.echo(f"{similarity:.4f}  {path}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A saved task model or multi-task model, or an encoder with --task.")],
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    task: Annotated[Optional[str], typer.Option(help="With an encoder: which new, random head to put on it.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    size: Size = None,
    threshold: Annotated[float, typer.Option(help="Detection: least score of a box.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Draw what a task model says about images; with --json print it instead, a line for each image.

    Example: eupe predict my-parts photo.jpg
    """
    from .features.extraction import find_images
    from .visualization.predictions import Predictor

    paths = find_images(images)
    predictor = Predictor(model, task, size, threshold)
    if predictor.is_random:
        typer.echo(f"{model} has no head for {task}: this one is new, with RANDOM weights.", err=True)
    for path in paths:
        if as_json:
            heads = {name: prediction.values() for name, prediction in predictor(path).items()}
            typer.echo(json.dumps({"path": str(path), "is_random": predictor.is_random, **heads}))
            continue
        for saved in predictor.save_pictures(path, output):
            typer.echo(saved)


@app.command()
def visualize(
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images; two for matches.")],
    kind: Annotated[Kind, typer.Option(help="What to draw.")] = Kind.pca,
    model: Model = "eupe-s",
    size: Annotated[int, typer.Option(help="Squash images to this side: larger, finer.")] = 512,
    patch: Annotated[Optional[tuple[int, int]], typer.Option(help="Row and column, for similarity.")] = None,  # noqa: UP045
    layer: Annotated[int, typer.Option(help="Block, from 0, for attention.")] = -1,
    tile: Annotated[Optional[int], typer.Option(help="Encode in tiles of this side, for large sizes.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
) -> None:
    """Draw what an encoder sees: principal components (colours agree between images), similarity, attention, matches.

    Example: eupe visualize photo.jpg other.jpg --kind pca
    """
    from .features.extraction import find_images
    from .visualization.encoders import draw

    for saved in draw(find_images(images), kind.value, model, size, patch, layer, output, tile):
        typer.echo(saved)


if __name__ == "__main__":
    main()
