# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny encoders that have learned something: drawn patterns, the ViT letters and crops of photographs as well.

Images are drawn anew for each batch, the same for the same seed. There are no digits among the letters, and none of
the photographs is one of those that `lora_quality.py` evaluates on.
"""

import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
import skimage.color
import skimage.data
import sklearn.datasets
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional

from eupe_hf import EupeConfig, EupeForImageClassification, EupeModel


SIDE = 64
PATTERNS = 32
# Lower case, where that is not the upper case again.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abdefghijlmnqrty"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmb10", "cmr10",
    "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
PHOTOGRAPHS = ("astronaut", "cat", "clock", "coffee", "coins", "microaneurysms", "page", "retina", "rocket", "text")
NUM_CLASSES = PATTERNS + len(LETTERS) + len(PHOTOGRAPHS) + 2  # two more come with scikit-learn


# ---- training ----


def pretrain(config: EupeConfig, folder: Path, steps: int | None = None) -> float:
    """Train an encoder with random weights on drawn classes, and save it. Returns its accuracy on new images."""
    torch.manual_seed(0)
    if config.backbone_type == "vit":
        return _pretrain_vit(config, folder, steps or 1400)
    return _pretrain_convnext(config, folder, steps or 1200)


def _pretrain_vit(config: EupeConfig, folder: Path, steps: int, batch: int = 32) -> float:
    """On the mixture, with Muon in the blocks (faster than AdamW), and a second classifier on the patches' mean."""
    model = EupeModel(config).train()
    head, patch_head = (nn.Linear(config.hidden_size, NUM_CLASSES) for _ in range(2))
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("encoder.layers")}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    rest = [*others, *head.parameters(), *patch_head.parameters()]
    optimizers = [
        torch.optim.Muon(matrices.values(), lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.05),
    ]

    def rate(step: int) -> float:
        return min((step + 1) / (0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for step in range(steps):
        images, classes = draw_mixture(batch, seed=step + 1)
        output = model(images)
        patches = output.last_hidden_state[:, config.num_prefix_tokens :].mean(1)
        (criterion(head(output.pooler_output), classes) + criterion(patch_head(patches), classes)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step(), optimizer.zero_grad(), schedule.step()
    model.save_pretrained(folder)
    with torch.inference_mode():
        images, classes = draw_mixture(512, seed=0)
        return _accuracy(head(model.eval()(images).pooler_output), classes)


def _pretrain_convnext(config: EupeConfig, folder: Path, steps: int, batch: int = 32) -> float:
    """On the patterns alone."""
    config.num_labels = PATTERNS
    model = EupeForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        images, classes = draw_patterns(batch, seed=step + 1)
        model(images, labels=classes).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    model.eupe.save_pretrained(folder)
    with torch.inference_mode():
        images, classes = draw_patterns(512, seed=0)
        return _accuracy(model.eval()(images).logits, classes)


def _accuracy(logits: torch.Tensor, classes: torch.Tensor) -> float:
    return (logits.argmax(1) == classes).double().mean().item()


# ---- images ----


def draw_mixture(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An eighth patterns, five eighths letters, and the rest crops of photographs, each with classes of their own.

    Returns:
        Images (count, 3, SIDE, SIDE), normalised, and classes (count,) from 0 to NUM_CLASSES - 1.
    """
    sizes = (count // 8, count * 5 // 8, count - count // 8 - count * 5 // 8)
    parts = [draw(size, seed) for draw, size in zip((draw_patterns, draw_letters, draw_crops), sizes, strict=True)]
    starts = (0, PATTERNS, PATTERNS + len(LETTERS))
    return (
        torch.cat([images for images, _ in parts]),
        torch.cat([start + classes for start, (_, classes) in zip(starts, parts, strict=True)]),
    )


def draw_patterns(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight outlines with four fillings, of any size, place and brightness, with some noise.

    Returns:
        Images (count, 3, SIDE, SIDE), normalised, and classes (count,) from 0 to 31.
    """
    kinds, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    waves = torch.arange(2, 6)
    heights, phases = torch.rand(8, 4, generator=kinds) * 0.7 / waves**0.5, 6.3 * torch.rand(8, 4, generator=kinds)
    classes = torch.randint(PATTERNS, (count,), generator=draw)
    outline, filling = classes // 4, (classes % 4)[:, None, None]

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=draw)

    axis, size = torch.linspace(-1, 1, SIDE), uniform(0.5, 0.65)
    y, x = axis[:, None] - uniform(-0.15, 0.15), axis - uniform(-0.15, 0.15)
    angles = torch.atan2(y, x) + uniform(-0.15, 0.15)
    bumps = heights[outline, :, None, None] * torch.cos(
        waves[:, None, None] * angles[:, None] + phases[outline, :, None, None]
    )
    edge = torch.hypot(x, y) / size - (1 + bumps.sum(1)).clamp(min=0.2)
    stripes = [torch.sin(20 * place + uniform(0, 6.3)) > 0 for place in (x.expand_as(edge), y.expand_as(edge))]
    fillings = torch.stack([edge > -0.25, edge < 0, *stripes])
    drawn = fillings.gather(0, filling.expand_as(edge)[None])[0] & (edge < 0)
    images = uniform(-1.5, 0) + drawn * uniform(1, 2.5)
    return (images + 0.2 * torch.randn(images.shape, generator=draw))[:, None].expand(-1, 3, -1, -1), classes


def draw_letters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Letters in any font, thickness, shape, place, resolution and brightness, with some noise."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(len(LETTERS), (count,), generator=draw)
    glyphs = _glyphs()[torch.randint(len(FONTS), (count,), generator=draw), classes][:, None]  # (count, 1, SIDE, SIDE)
    thickness = torch.randint(3, (count,), generator=draw)[:, None, None, None]
    glyphs = torch.where(thickness == 1, functional.max_pool2d(glyphs, 3, 1, 1), glyphs)
    glyphs = torch.where(thickness == 2, functional.max_pool2d(glyphs, 5, 1, 2), glyphs)
    places = _places(count, draw, turn=0.15, shear=0.2, scale=(0.85, 1.2), shift=0.1)
    glyphs = functional.grid_sample(glyphs, places, align_corners=False)
    coarse = (8, 12, 16, 32, 64)[int(torch.randint(5, (1,), generator=draw))]
    glyphs = functional.interpolate(
        functional.interpolate(glyphs, size=coarse, mode="area"), size=SIDE, mode="bicubic"
    )
    low, high = -2.1 + 2 * _uniform(count, draw), 0.5 + 2 * _uniform(count, draw)
    upside = _uniform(count, draw) < 0.5  # dark on bright
    ground, ink = torch.where(upside, high, low), torch.where(upside, low, high)
    return _noisy(ground + glyphs.clamp(0, 1) * (ink - ground), draw), classes


def draw_crops(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of photographs, about 32 pixels wide and drawn twice as large, turned, sheared and mirrored."""
    draw = torch.Generator().manual_seed(seed)
    photographs = _photographs()
    classes = torch.randint(len(photographs), (count,), generator=draw)
    places = _places(count, draw, turn=0.25, shear=0.2, scale=(0.7, 1.4), shift=0.0)
    mirrored = torch.rand(count, generator=draw) < 0.5
    places[..., 0] = torch.where(mirrored[:, None, None], -places[..., 0], places[..., 0])
    shifts = torch.rand(count, 2, generator=draw) * 2 - 1
    images = torch.empty(count, 1, SIDE, SIDE)
    for label, photograph in enumerate(photographs):
        chosen = classes == label
        half = 16 / torch.tensor(photograph.shape[:0:-1]) * 2  # width and height of a crop, where the whole is 2
        inside = shifts[chosen] * (1 - 1.5 * half)
        grid = places[chosen] * half + inside[:, None, None]
        source = photograph[None].expand(int(chosen.sum()), -1, -1, -1)
        images[chosen] = functional.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    spread = images.std((1, 2, 3), keepdim=True) + 0.02
    images = (images - images.mean((1, 2, 3), keepdim=True)) / spread
    return _noisy(images * (0.5 + 0.5 * _uniform(count, draw)) + _uniform(count, draw) - 0.5, draw), classes


def _uniform(count: int, draw: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 1, 1, generator=draw)


def _noisy(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    noise = 0.2 * _uniform(len(images), draw) * torch.randn(images.shape, generator=draw)
    return (images + noise).expand(-1, 3, -1, -1)


def _places(
    count: int, draw: torch.Generator, turn: float, shear: float, scale: tuple[float, float], shift: float
) -> torch.Tensor:
    """Where pixels come from, for `grid_sample`: turned (radians), sheared, scaled and shifted at random."""
    turns, shears, *shifts = (
        (2 * torch.rand(count, generator=draw) - 1) * most for most in (turn, shear, shift, shift)
    )
    across, down = (scale[0] + (scale[1] - scale[0]) * torch.rand(2, count, generator=draw)).reciprocal()
    cos, sin = turns.cos(), turns.sin()
    rows = (
        (cos * across, (shears * cos - sin) * across, shifts[0]),
        (sin * down, (shears * sin + cos) * down, shifts[1]),
    )
    matrices = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
    return functional.affine_grid(matrices, [count, 1, SIDE, SIDE], align_corners=False)


@functools.cache
def _glyphs() -> torch.Tensor:
    """All letters in all fonts (fonts, letters, SIDE, SIDE), from 0 to 1, each in the middle."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = torch.zeros(len(FONTS), len(LETTERS), SIDE, SIDE)
    for row, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 46)
        for column, letter in enumerate(LETTERS):
            image = Image.new("L", (SIDE, SIDE))
            left, top, right, bottom = font.getbbox(letter)
            ImageDraw.Draw(image).text(((SIDE - left - right) / 2, (SIDE - top - bottom) / 2), letter, 255, font)
            glyphs[row, column] = torch.from_numpy(np.array(image)) / 255
    return glyphs


@functools.cache
def _photographs() -> list[torch.Tensor]:
    """Grey photographs (1, H, W), from 0 to 1."""
    found = [getattr(skimage.data, name)() for name in PHOTOGRAPHS] + list(
        sklearn.datasets.load_sample_images().images
    )
    grey = [skimage.color.rgb2gray(image) if image.ndim == 3 else image / 255 for image in found]
    return [torch.from_numpy(np.ascontiguousarray(image)).float()[None] for image in grey]
