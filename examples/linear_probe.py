# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Train a linear probe: a classifier on the frozen features of an encoder, in a minute and without a GPU.

    python examples/linear_probe.py --model eupe-s --output my-classifier
    python examples/linear_probe.py --model eupe-s --dataset photos/ --output my-classifier

Each image is encoded once; then logistic regression (scikit-learn) finds the weights of the head, so there is no
learning rate, and one penalty to tune. `--dataset` is a folder with one folder of images per class, or the id of a
data set on the Hub; without it the probe learns the handwritten digits that come with scikit-learn (1,797 scans of
8 x 8 pixels). It saves an ordinary `EupeForImageClassification`. Needs `pip install 'eupe-hf[eval]'`.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import logging as transformers_logging

from eupe_hf import EupeForImageClassification
from eupe_hf.data.loading import load_split
from eupe_hf.data.rows import Rows
from eupe_hf.loading import load_processor, pick_device


try:
    from datasets import ClassLabel, Dataset
    from datasets import Image as DatasetImage
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
except ImportError as error:
    sys.exit(f"linear_probe.py needs {error.name}: pip install 'eupe-hf[eval]'")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/linear_probe.py --model eupe-s --dataset photos/ --output my-classifier",
    )
    parser.add_argument("--model", default="eupe-s", help="the encoder: a short name or a folder (default: eupe-s)")
    parser.add_argument("--dataset", help="folder of class folders, or id on the Hub (default: scikit-learn's digits)")
    parser.add_argument("--split", default="train", help="split of the data set to use (default: train)")
    add = parser.add_argument
    add("--image-column", "--image_column", default="image", help="column with the images (default: image)")
    add("--label-column", "--label_column", default="label", help="column with the classes (default: label)")
    add("--held-out", "--held_out", type=float, default=0.2, help="share kept for the accuracy (default: 0.2)")
    add("--patch-mean", "--patch_mean", action="store_true", help="also read the mean patch feature")
    parser.add_argument("--penalty", type=float, default=1.0, help="inverse strength, C of scikit-learn (default: 1)")
    parser.add_argument("--size", type=int, default=224, help="resize images to this side in pixels (default: 224)")
    add("--batch-size", "--batch_size", type=int, default=32, help="images per forward pass (default: 32)")
    parser.add_argument("--limit", type=int, help="use this many images, drawn at random")
    parser.add_argument("--output", type=Path, default=Path("linear-probe"), help="folder for the model")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args()


def load_images(arguments: argparse.Namespace) -> tuple[Dataset, list[str]]:
    """A shuffled data set with columns "image" and "label", and the names of the classes."""
    if arguments.dataset is None:
        digits = load_digits()
        images = [Image.fromarray((16 * image).clip(0, 255).astype("uint8")) for image in digits.images]
        data = Dataset.from_dict({"image": images, "label": digits.target.tolist()})
        data = data.cast_column("label", ClassLabel(names=[str(name) for name in digits.target_names]))
        data = data.cast_column("image", DatasetImage(decode=False))
    else:
        columns = {"image": arguments.image_column, "label": arguments.label_column}
        data = load_split(arguments.dataset, arguments.split, columns)
        data = data.rename_columns({column: name for name, column in columns.items()})
        if not isinstance(data.features["label"], ClassLabel):
            data = data.class_encode_column("label")
    data = data.shuffle(seed=0)
    data = data.select(range(min(arguments.limit or len(data), len(data))))
    if len(set(data["label"])) < 2:
        raise ValueError("A classifier needs images of at least two classes.")
    return data, data.features["label"].names


def main() -> None:
    """Encode once, fit, measure, save."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()  # it would warn that the head is new
    transformers_logging.disable_progress_bar()
    try:
        # 1. Load the data, and a model with a new head for its classes.
        device = pick_device(arguments.device)
        data, names = load_images(arguments)
        model = EupeForImageClassification.from_pretrained(
            arguments.model, id2label=dict(enumerate(names)), classify_patch_mean=arguments.patch_mean
        )
        model.eval().to(device)
        processor = load_processor(arguments.model, arguments.size)

        # 2. Encode every image once, and catch the features on their way into the head.
        images, features = Rows(data, {"image": "image"}), []
        model.head.classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
        for start in tqdm(range(0, len(data), arguments.batch_size), desc="encoding", unit="batch"):
            batch = [images[row][0] for row in range(start, min(start + arguments.batch_size, len(data)))]
            with torch.inference_mode():
                model(**processor(batch, return_tensors="pt").to(device))
    except (OSError, ValueError) as error:
        sys.exit(f"linear_probe.py: {error}")
    encoded, labels = torch.cat(features).double().numpy(), data["label"]

    # 3. Fit the probe on standardised features.
    held_out = round(arguments.held_out * len(data))
    scaler = StandardScaler().fit(encoded[held_out:])
    probe = LogisticRegression(C=arguments.penalty, max_iter=2000)
    probe.fit(scaler.transform(encoded[held_out:]), labels[held_out:])

    # 4. Put it into the head: standardising and the probe make one linear map.
    model.cpu()
    weight = torch.from_numpy(probe.coef_ / scaler.scale_)
    bias = torch.from_numpy(probe.intercept_) - weight @ torch.from_numpy(scaler.mean_)
    if len(probe.classes_) == 2:  # scikit-learn has one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = model.head.classifier
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)  # classes without a training image
        head.weight[probe.classes_] = weight.to(head.weight.dtype)
        head.bias[probe.classes_] = bias.to(head.bias.dtype)

    # 5. Measure on the held-out images with the model itself, and save.
    if held_out:
        logits = head(torch.from_numpy(encoded[:held_out]).to(head.weight.dtype))
        accuracy = (logits.argmax(dim=1) == torch.tensor(labels[:held_out])).double().mean().item()
        print(f"{held_out} held-out images, {len(names)} classes: accuracy {accuracy:.3f}")
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    print(f"Saved {arguments.output}: pipeline('image-classification', model={str(arguments.output)!r}) runs it.")


if __name__ == "__main__":
    main()
