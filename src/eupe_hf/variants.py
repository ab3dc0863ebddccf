# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The six EUPE models as data: their names, files on the Hub, shapes, sizes, and the paper's figures."""

import copy
import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .models.configuration_eupe import EupeConfig
from .models.reading_eupe import check_path


@dataclass(frozen=True)
class Variant:
    """One published encoder.

    Args:
        name: Short name, for `from_pretrained`.
        repo_id: Repository on the Hub.
        raw_file: The published checkpoint in this repository.
        torch_hub_name: Entry point in upstream's torch.hub.
        timm_name: Name of the weights in timm.
        num_parameters: Upstream's count, which includes the masked key biases of the ViTs.
        config: Fields of `EupeConfig` beside its defaults.
        paper: The authors' figures (arXiv 2603.22387) by benchmark; depth as RMSE, the others as scores.
        gflops: The authors' GFLOPs at 256 and at 512 pixels.
        phone_ms: The authors' milliseconds on an iPhone 15 Pro CPU (ExecuTorch) at 256 and at 512 pixels.
    """

    name: str
    repo_id: str
    raw_file: str
    torch_hub_name: str
    timm_name: str
    num_parameters: int
    config: dict[str, Any]
    paper: dict[str, float]
    gflops: tuple[int, int]
    phone_ms: tuple[float, float]
    synonyms: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = {self.name, self.repo_id, self.torch_hub_name, self.timm_name, self.raw_file.removesuffix(".pt")}
        object.__setattr__(self, "synonyms", frozenset(name.lower() for name in names))


_BENCHMARKS = ("TextVQA", "SQA", "RealWorldQA", "POPE", "GQA", "MME-P", "SPair-71k", "NYUv2", "ADE20k")


def _paper(*figures: float, **vit_only: float) -> dict[str, float]:
    return {
        **{name.replace("_", " "): value for name, value in vit_only.items()},
        **dict(zip(_BENCHMARKS, figures, strict=True)),
    }


def _variant(
    family: str, size: str, long_size: str, num_parameters: int, config: dict[str, Any], **rest: Any
) -> Variant:
    is_vit = family == "ViT"
    title = f"EUPE-{family}-{size.upper()}"
    return Variant(
        name=f"eupe-{size}" if is_vit else f"eupe-convnext-{size}",
        repo_id=f"facebook/{title}",
        raw_file=f"{title}.pt",
        torch_hub_name=f"eupe_vit{size}16" if is_vit else f"eupe_convnext_{long_size}",
        timm_name=f"{f'vit_{long_size}_patch16_dinov3_qkvb' if is_vit else f'convnext_{long_size}'}.eupe_lvd1689m",
        num_parameters=num_parameters,
        config={"backbone_type": family.lower(), **config},
        **rest,
    )


_ALL = (
    _variant(
        "ViT", "t", "tiny", 5_492_160, {"hidden_size": 192, "num_attention_heads": 3},
        paper=_paper(42.0, 69.5, 50.0, 82.4, 61.4, 1258.0, 37.2, 0.571, 36.7, IN1k_zero_shot=50.5, IN1k_kNN=66.3),
        gflops=(4, 17), phone_ms=(6.8, 38.3),
    ),
    _variant(
        "ViT", "s", "small", 21_601_152, {"hidden_size": 384, "num_attention_heads": 6},
        paper=_paper(44.1, 69.3, 51.7, 84.5, 65.0, 1304.9, 46.5, 0.455, 46.6, IN1k_zero_shot=69.8, IN1k_kNN=78.2),
        gflops=(12, 63), phone_ms=(17.1, 97.9),
    ),
    _variant(
        "ViT", "b", "base", 85_669_632, {"hidden_size": 768, "num_attention_heads": 12},
        paper=_paper(50.4, 69.7, 55.5, 85.9, 67.3, 1374.5, 51.3, 0.391, 52.4, IN1k_zero_shot=79.7, IN1k_kNN=84.1),
        gflops=(47, 216), phone_ms=(55.2, 305.2),
    ),
    _variant(
        "ConvNeXt", "t", "tiny", 27_820_128, {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
        paper=_paper(43.7, 68.8, 47.9, 83.4, 63.0, 1278.1, 41.3, 0.430, 43.5),
        gflops=(5, 20), phone_ms=(22.4, 82.4),
    ),
    _variant(
        "ConvNeXt", "s", "small", 49_454_688, {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768]},
        paper=_paper(45.0, 68.9, 50.5, 84.0, 64.7, 1284.2, 40.1, 0.388, 46.8),
        gflops=(11, 46), phone_ms=(38.5, 141.9),
    ),
    _variant(
        "ConvNeXt", "b", "base", 87_566_464, {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
        paper=_paper(46.4, 70.1, 53.3, 84.7, 65.8, 1348.9, 37.7, 0.365, 48.9),
        gflops=(20, 81), phone_ms=(59.3, 222.7),
    ),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def find_variant(name: str) -> Variant | None:
    """The variant with this short name, Hub id, torch.hub, timm or file name, in any case; or `None`."""
    return next((variant for variant in _ALL if str(name).lower() in variant.synonyms), None)


def get_variant(name: str) -> Variant:
    """As `find_variant`, but raises `ValueError` for an unknown name, with all names and the nearest one."""
    variant = find_variant(name)
    if variant is not None:
        return variant
    by_synonym = {synonym: variant.name for variant in _ALL for synonym in sorted(variant.synonyms)}
    near = difflib.get_close_matches(str(name).lower(), by_synonym, n=1, cutoff=0.5)
    hint = f" Did you mean {by_synonym[near[0]]!r}?" if near else ""
    raise ValueError(f"Unknown EUPE model {name!r}; the models are {', '.join(VARIANTS)}.{hint}")


def check_source(source: str) -> None:
    """Refuse the name of a model that is neither an existing path, nor USER/NAME on the Hub, nor one of the six.

    Raises `FileNotFoundError` for a path, `ValueError` for a name, with the six and the nearest one, and for a path
    that is not UTF-8.
    """
    check_path(source)
    parts = len(Path(source).parts)
    if parts == 2 or source in VARIANTS or Path(source).exists():
        return
    if parts > 2:
        raise FileNotFoundError(f"There is no model at {source}.")
    variant = find_variant(source)
    if variant is not None:  # by another of its names, which from_pretrained does not know
        raise ValueError(f"There is no folder {source}; the model of that name is {variant.name!r} here.")
    get_variant(source)


def variant_config(name: str, **overrides: Any) -> EupeConfig:
    """Configuration of one of the six published encoders.

    Args:
        name: "eupe-t", "eupe-s", "eupe-b", "eupe-convnext-t", "eupe-convnext-s", "eupe-convnext-b"; or a torch.hub
            name ("eupe_vits16"), Hub id ("facebook/EUPE-ViT-S") or timm name.
        **overrides: Fields of `EupeConfig` to change, e.g. `out_indices=[3, 6, 9, 12]` or `num_labels=10`.

    Returns:
        The configuration, with `name_or_path` set to the Hub id of the published weights.

    Raises:
        ValueError: Unknown name; the message gives the nearest one.
        TypeError: An override that is not a field of the configuration.

    Example:

    ```python
    >>> from eupe_hf import variant_config

    >>> variant_config("eupe-b").hidden_size
    768

    ```
    """
    variant = get_variant(name)
    allowed = {f.name.lstrip("_") for f in fields(EupeConfig)}
    allowed |= {"num_labels", "out_features", "out_indices", "attn_implementation", "output_attentions"}
    for key in overrides:
        if key not in allowed:
            near = difflib.get_close_matches(key, sorted(allowed), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"EupeConfig has no field {key!r}.{hint}")
    return EupeConfig(**{**copy.deepcopy(variant.config), "name_or_path": variant.repo_id, **overrides})
