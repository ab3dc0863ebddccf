# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of many images: memory over a long run, and the same job in other engines, `datasets` and Ray."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script, tiny_config
from PIL import Image
from typer.testing import CliRunner

from eupe_hf import EupeImageProcessorPil, EupeModel, cli
from eupe_hf.features import feature_table, find_images, read_features, save_features, write_features


def make_images(folder: Path, count: int, kinds: int = 50) -> Path:
    """A folder with small JPEGs, of which so many are different; the others are links to them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"photograph-{i:08d}.jpg"
        if i < kinds:
            Image.fromarray(generator.integers(0, 256, (40, 30 + i % 20, 3), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"photograph-{i % kinds:08d}.jpg", path)
    return folder


def run(*command: str | Path, home: Path) -> subprocess.CompletedProcess:
    """Run a script offline, with one thread and an empty home."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


# ---- memory ----

MEASURED = """
import json, sys
import psutil, torch
from eupe_hf import EupeConfig, EupeImageProcessorPil, EupeModel
from eupe_hf import features

torch.manual_seed(0)
torch.set_num_threads(1)
model = EupeModel(EupeConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2)).eval()
processor = EupeImageProcessorPil(size={"height": 32, "width": 32})
process, samples, forward = psutil.Process(), [], model.forward

def sampled(pixel_values):
    workers = [worker.memory_info().rss for worker in process.children()]
    samples.append((len(pixel_values), process.memory_info().rss, workers))
    return forward(pixel_values)

model.forward = sampled
paths = list(map(str, features.find_images([sys.argv[1]])))
features.save_features(model, processor, paths[:64], sys.argv[2] + "/warm.parquet", num_workers=2)
told = []
for run in ("first", "second"):
    samples.clear()
    features.save_features(model, processor, paths, f"{sys.argv[2]}/{run}.parquet", num_workers=2)
    told.append({"samples": list(samples), "after": process.memory_info().rss})
print(json.dumps(told))
"""


def growth(told: dict, count: int) -> tuple[float, float]:
    """Megabytes by which main process and largest worker grow over a run, from their peaks in 1,000 images on."""
    counts, mains, workers = zip(*told["samples"], strict=True)
    assert sum(counts) == count
    assert max(map(len, workers)) == 2  # not a second set, as tqdm makes of a DataLoader
    early = int(np.searchsorted(np.cumsum(counts), 1_000))
    main = max(told["after"], *mains) - max(mains[:early])
    worker = max(map(max, filter(None, workers))) - max(map(max, filter(None, workers[:early])))
    return main / 1e6, worker / 1e6


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_images(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 10_000)
    result = run("-c", MEASURED, images, tmp_path, home=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (growth(told, 10_000) for told in json.loads(result.stdout))
    assert len(read_features(tmp_path / "second.parquet").paths) == 10_000
    print(f"first run, main process + {first[0]:.1f} MB, worker + {first[1]:.1f} MB; second run + {second[0]:.1f} MB")
    # the pictures of a batch alone are 0.4 MB, all of them 123 MB; Arrow's pool takes its memory in the first run
    assert first[0] < 40 and second[0] < 10 and first[1] < 15 and second[1] < 15


JOINED = """
import sys, threading, time
from pathlib import Path
import numpy, psutil, pyarrow.parquet, torch
from eupe_hf import features
from eupe_hf.features import files as feature_files

folder = Path(sys.argv[1])
def part(number, width, count=2048):
    paths = [f"{number}/{row}" for row in range(count)]
    values = torch.arange(count * width, dtype=torch.float32).view(count, width) + number
    table = feature_files.feature_table(paths, values, {"skipped": "{}"})
    feature_files.write_features(folder / f"{number:06d}.parquet", [table], table.schema)

def join(name):
    feature_files.join_features(sorted(folder.glob("0*.parquet")), folder / name, {"model": "m"})

part(0, 1024)
join("small")  # what the first call loads and keeps is not what grows
for number in range(20):
    part(number, 1024)
process, done = psutil.Process(), threading.Event()
before = peak = process.memory_info().rss
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
join("out.parquet")
done.set()
thread.join()
print(peak - before)
"""


@pytest.mark.slow
def test_join_holds_one_part_at_a_time(tmp_path: Path) -> None:
    result = run("-c", JOINED, tmp_path, home=tmp_path)
    assert result.returncode == 0, result.stderr
    found = read_features(tmp_path / "out.parquet")
    assert found.features.shape == (20 * 2048, 1024) and found.model == "m"
    assert found.paths[2049] == "1/1" and found.features[2049, 5] == 1024 + 5 + 1
    assert int(result.stdout) < 100e6  # 33 and 60 MB when measured; the features are 168 MB


# ---- other engines ----


@pytest.fixture(scope="module")
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, 41 images of all kinds, two of them damaged, and what `eupe features` makes."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    overrides = {"layerscale_value": 0.5} if request.param == "vit" else {}
    EupeModel(tiny_config(request.param, **overrides)).save_pretrained(folder / "encoder")
    EupeImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "encoder")
    images = make_images(folder / "images", 36)
    (images / "photograph-00000007.jpg").write_bytes(b"no picture")
    whole = (images / "photograph-00000001.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), (200, 10, 10)).save(images / "one.png")
    Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)).save(images / "grey16.png")
    Image.new("RGBA", (90, 30), (10, 200, 10, 100)).save(images / "transparent.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(ROOT / "examples" / "images" / "coffee.jpg").resize((60, 40)).save(images / "turned.jpg", exif=turned)
    model, processor = (
        EupeModel.from_pretrained(folder / "encoder"),
        EupeImageProcessorPil.from_pretrained(folder / "encoder"),
    )
    done = save_features(model.eval(), processor, find_images([images]), folder / "whole.parquet", num_workers=0)
    assert (done.count, len(done.skipped)) == (39, 2)
    return folder


def refusal(script: str, *arguments: object, folder: Path) -> str:
    """What an example says when it gives up, run in this process."""
    result = run_script(ROOT / "examples" / script, *map(str, arguments), folder=folder)
    assert result.returncode and not result.stdout
    return result.stderr.strip()


def assert_same_features(found: Path, job: Path) -> None:
    """What `eupe features` gives, in its order; batches may be others, which moves the last bits."""
    features, expected = read_features(found), read_features(job / "whole.parquet")
    assert features.paths == expected.paths
    assert features.model == str(job / "encoder") == expected.model
    torch.testing.assert_close(features.features, expected.features, atol=1e-6, rtol=0)


def assert_search_finds_itself(index: Path, job: Path) -> None:
    image = job / "images" / "turned.jpg"
    result = CliRunner().invoke(cli.app, ["search", str(image), "--index", str(index), "--count", "1", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row == {"path": str(image), "similarity": pytest.approx(1)}


@pytest.mark.slow
@pytest.mark.parametrize("job", ["convnext"], indirect=True)
def test_datasets_in_processes_and_shards_gives_the_same_features(job: Path, tmp_path: Path) -> None:
    command = [
        "--output",
        tmp_path / "out",
        "--model",
        job / "encoder",
        "--num-proc",
        2,
        "--num_shards",
        2,
        "--device",
        "cpu",
    ]
    command += ["--index"]
    script = ROOT / "examples" / "features_datasets.py"
    shards = [run(script, job / "images", *command, index, home=tmp_path) for index in (0, 1)]
    assert [shard.returncode for shard in shards] == [0, 0], [shard.stderr for shard in shards]
    names = [f"features-{index:05d}-of-00002.parquet" for index in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    left_out = [int(shard.stdout.split(" images, ")[1].split()[0]) for shard in shards]
    assert sum(left_out) == 2
    assert_same_features(tmp_path / "out", job)
    assert_search_finds_itself(tmp_path / "out", job)
    told = refusal(script.name, job / "images", *command, 1, folder=tmp_path)
    assert told.endswith(f"{names[1]} already exists: remove it to compute it again.")


@pytest.mark.parametrize("job", ["convnext"], indirect=True)
def test_datasets_answers_bad_input_with_one_line(job: Path, tmp_path: Path) -> None:
    command = ["--output", tmp_path / "out", "--model", job / "encoder", "--num_shards"]
    told = refusal("features_datasets.py", job / "images", *command, 100, folder=tmp_path)
    assert told == "features_datasets.py: There are 41 images: --num_shards can't be 100."
    told = refusal("features_datasets.py", job / "nothing", *command, 1, folder=tmp_path)
    assert told == f"features_datasets.py: There is no file or folder {job / 'nothing'}."
    told = refusal("features_datasets.py", job / "images", *command, 2, "--index", 2, folder=tmp_path)
    assert "--index must lie between 0 and --num_shards - 1, which is 1" in told
    assert not (tmp_path / "out").exists()
    told = refusal("features_datasets.py", job / "images", *command, 1, "--device", "abacus", folder=tmp_path)
    assert "The device 'abacus' is not available on this machine: choose cpu" in told.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.parametrize("job", ["vit"], indirect=True)
def test_ray_gives_the_same_features(job: Path, tmp_path: Path) -> None:
    # with half a core reading runs apart from encoding, as with a GPU; a batch of one is empty where that is damaged
    command = ["--output", tmp_path / "out", "--model", job / "encoder", "--cpus", 0.5, "--batch-size", 1]
    command += ["--device", "cpu"]
    script = ROOT / "examples" / "features_ray.py"
    result = run(script, job / "images", *command, home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"Saved {tmp_path / 'out'}: 39 images, 2 unreadable ones left out.\n"
    assert not list(tmp_path.glob(".out*"))
    assert_same_features(tmp_path / "out", job)
    assert_search_finds_itself(tmp_path / "out", job)
    told = refusal(script.name, job / "images", *command, folder=tmp_path)
    assert told == f"features_ray.py: {tmp_path / 'out'} already exists: remove it, or name another folder."


def test_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name, width in (("a", 3), ("b", 4)):
        table = feature_table([name], torch.ones(1, width), {"model": name})
        write_features(tmp_path / f"{name}.parquet", [table], table.schema)
    with pytest.raises(ValueError, match=r"several models, a \(width 3\), b \(width 4\): compute all with one"):
        read_features(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There are no \.parquet files in"):
        read_features(tmp_path / "empty")
