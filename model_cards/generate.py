# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Make the cards of the six encoders from `template.md`, a data file for each, and the package's table of models.

With --fill, complete the card that eupe-hf saved with a model of yours, from `head.md`, `adapter.md` or `vlm.md`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, meta

from eupe_hf.conversion.checkpoints import dinov3_config
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE, EupeConfig
from eupe_hf.models.modeling_eupe_cards import LICENSE_TEXT
from eupe_hf.variants import VARIANTS, variant_config


EXAMPLE = """example:
  python model_cards/generate.py --check
  python model_cards/generate.py --fill my-finetuned --fields about-it.yaml
"""
HERE = Path(__file__).resolve().parent
PAPER, SOURCE = "https://arxiv.org/abs/2603.22387", "EUPE paper, as reported by its authors"
VQA = "visual-question-answering"
# By the names in `Variant.paper`: task, data set id, data set name, metric, and the metric in words.
BENCHMARKS = {
    "IN1k zero shot": ("zero-shot-image-classification", "imagenet-1k", "ImageNet-1k", "accuracy", "zero-shot top 1"),
    "IN1k kNN": ("image-classification", "imagenet-1k", "ImageNet-1k", "accuracy", "k-NN top 1"),
    "TextVQA": (VQA, "textvqa", "TextVQA", "accuracy", "accuracy, LLaVA-1.5"),
    "SQA": (VQA, "scienceqa", "ScienceQA", "accuracy", "accuracy, LLaVA-1.5"),
    "RealWorldQA": (VQA, "realworldqa", "RealWorldQA", "accuracy", "accuracy, LLaVA-1.5"),
    "POPE": (VQA, "pope", "POPE", "score", "score, LLaVA-1.5"),
    "GQA": (VQA, "gqa", "GQA", "accuracy", "accuracy, LLaVA-1.5"),
    "MME-P": (VQA, "mme", "MME", "score", "perception score, LLaVA-1.5"),
    "SPair-71k": ("keypoint-matching", "spair-71k", "SPair-71k", "pck", "PCK@0.1"),
    "NYUv2": ("depth-estimation", "nyu-depth-v2", "NYU Depth v2", "rmse", "RMSE, lower is better"),
    "ADE20k": ("image-segmentation", "ade20k", "ADE20k", "mean_iou", "mIoU"),
}
LIMITS = {
    "vit": "Dense features have stride 16. Pixels beyond the last whole patch of 16 x 16 are lost.",
    "convnext": "The normed dense features have stride 32. The finer maps of earlier stages have no final norm.",
}


def encoder_card(name: str) -> ModelCard:
    """The card of one of the six encoders. "PATH" in it stands for its repository."""
    variant, config = VARIANTS[name], variant_config(name)
    title = f"EUPE {variant.repo_id.removeprefix('facebook/EUPE-')} ({name})"
    results = [
        EvalResult(*BENCHMARKS[key][:4], value, metric_name=BENCHMARKS[key][4], source_name=SOURCE, source_url=PAPER)
        for key, value in variant.paper.items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        # The Hub has no relation for a conversion, only for finetune, adapter, quantized and merge.
        base_model=variant.repo_id,
        tags=["eupe", config.backbone_type, "vision", "backbone", "arxiv:2603.22387"],
        model_name=title,
        eval_results=results,
        **WEIGHTS_LICENSE,
    )
    return ModelCard.from_template(
        data,
        template_path=HERE / "template.md",
        name=name,
        title=title,
        timm_name=variant.timm_name,
        timm_pool=', global_pool="token"' if config.backbone_type == "vit" else "",
        dinov3_class=dinov3_config(config).architectures[0],
        gflops=variant.gflops,
        phone_ms=variant.phone_ms,
        results=results,
        paper_url=PAPER,
        limit=LIMITS[config.backbone_type],
        license_text=LICENSE_TEXT,
        **yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")),
        **architecture(config, variant.num_parameters),
    )


def architecture(config: EupeConfig, num_parameters: int) -> dict[str, Any]:
    """Shape and size of an encoder, for the template."""
    fields = {"width": config.hidden_size, "patches": (256 // config.patch_size) ** 2}
    grid = f"{256 // config.patch_size} x {256 // config.patch_size}"
    fields["parameters"] = f"{num_parameters:,}"
    if config.backbone_type == "vit":
        key_biases = config.num_hidden_layers * config.hidden_size
        fields["architecture"] = (
            f"ViT, {config.num_hidden_layers} blocks of width {config.hidden_size}, {config.num_attention_heads} "
            f"heads, {config.num_register_tokens} registers, rotary positions, patches of {config.patch_size} pixels"
        )
        fields["tokens"] = f"class token, {config.num_register_tokens} registers, {grid} patches"
        fields["parameters"] += (
            f", including {key_biases:,} key biases that the authors' mask sets to zero and that are left out here"
        )
        num_parameters -= key_biases
    else:
        blocks, widths = (", ".join(map(str, numbers)) for numbers in (config.depths, config.hidden_sizes))
        fields["architecture"] = f"ConvNeXt, stages of {blocks} blocks with widths {widths}; strides 4, 8, 16, 32"
        fields["tokens"] = f"{grid} positions of the last stage"
    return {**fields, "megabytes": round(num_parameters * 4 / 1e6)}


def filled_card(folder: Path, fields: Mapping[str, Any]) -> ModelCard:
    """The card in a model's folder, completed with what only its author knows.

    Raises:
        ValueError: A field of the template is missing, unknown to it, or neither text nor a number.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"The fields must be a mapping from names to text, got {type(fields).__name__}.")
    card = ModelCard.load(folder / "README.md")
    adapter, vlm = card.data.library_name == "peft", card.data.pipeline_tag == "image-text-to-text"
    template = HERE / ("adapter.md" if adapter else "vlm.md" if vlm else "head.md")
    wanted = meta.find_undeclared_variables(Environment().parse(template.read_text(encoding="utf-8")))
    wanted -= {"card_data", "text"}
    if wanted != fields.keys():
        raise ValueError(
            f"{template.name} takes the fields {', '.join(sorted(wanted))}; "
            f"missing: {', '.join(sorted(wanted - fields.keys())) or 'none'}; "
            f"unknown: {', '.join(sorted(fields.keys() - wanted)) or 'none'}."
        )
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"The field {name} must be text, in markdown, got {type(value).__name__}: quote it.")
    return ModelCard.from_template(card.data, template_path=template, text=card.text.strip(), **fields)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns 1 if --check finds a card that is out of date."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a card is out of date")
    parser.add_argument("--fill", type=Path, metavar="DIR", help="complete the README.md of a saved model")
    parser.add_argument("--fields", type=Path, metavar="FILE", help="with --fill: the template's fields, as YAML")
    args = parser.parse_args(arguments)
    if (args.fill is None) != (args.fields is None):
        parser.error("--fill DIR requires --fields FILE, and the other way round")
    if args.fill:
        try:
            fields = yaml.safe_load(args.fields.read_text(encoding="utf-8"))
            filled_card(args.fill, fields).save(args.fill / "README.md")
        except (OSError, ValueError, yaml.YAMLError) as error:
            parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
        return 0
    cards = {HERE / f"{name}.md": f"{encoder_card(name)}\n" for name in VARIANTS}
    stale = [path for path, text in cards.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if args.check and stale:
        names = ", ".join(path.name for path in stale)
        print(f"Out of date: {names}. Run `make cards` and commit the result.", file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(cards[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
