"""The stand-in Hub against the real `huggingface_hub` and transformers.

Beside the stand-in these tests hold down what the client does when things go wrong, for the library to rely on.
"""

import hashlib
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer, git_sha1, hub_environment, use_hub
from huggingface_hub import (
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    list_repo_tree,
    model_info,
    repo_exists,
    resolve_revision,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import _CACHED_NO_EXIST
from huggingface_hub.utils import httpx
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel


REPO = "facebook/EUPE-ViT-S"
WEIGHTS = random.Random(0).randbytes(3_000_000)
CONFIG = b'{"model_type": "vit"}'
CARD = b"---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\ntags: [eupe]\n---\n# EUPE\n"
FILES = {"EUPE-ViT-S.pt": WEIGHTS, "config.json": CONFIG, "README.md": CARD}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the client's waits between retries instead of sitting them out."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in Hub with one repository, in a process that can connect to nothing else."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] == "127.0.0.1", f"the test reached out to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo(REPO, FILES)
        yield server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    """A client with write access."""
    return HfApi(token=TOKEN)


def methods(server: HubServer) -> list[str]:
    return [method for method, _ in server.requests]


def tiny_config() -> ViTConfig:
    return ViTConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )


@pytest.mark.parametrize(
    ("name", "content", "blob"),
    [
        ("config.json", CONFIG, git_sha1(CONFIG)),
        ("EUPE-ViT-S.pt", WEIGHTS, hashlib.sha256(WEIGHTS).hexdigest()),
    ],
    ids=["regular", "lfs"],
)
def test_download_gives_the_file_under_its_hash(server: HubServer, name: str, content: bytes, blob: str) -> None:
    path = Path(hf_hub_download(REPO, name))
    assert path.read_bytes() == content
    assert path.resolve().name == blob
    assert path.is_relative_to(constants.HF_HUB_CACHE)
    assert server.requests == [("HEAD", f"/{REPO}/resolve/main/{name}"), ("GET", f"/{REPO}/resolve/main/{name}")]
    assert server.repo_ids_requested() == {REPO}


def test_second_download_makes_no_get(server: HubServer) -> None:
    path = hf_hub_download(REPO, "EUPE-ViT-S.pt")
    server.reset_log()
    assert hf_hub_download(REPO, "EUPE-ViT-S.pt") == path
    assert methods(server) == ["HEAD"]


def test_revision_selects_the_commit(server: HubServer) -> None:
    first = server.commit(REPO, {"config.json": b"first"})
    server.tag(REPO, "v1.0")
    second = server.commit(REPO, {"config.json": b"second", "README.md": None})
    contents = {
        revision: Path(hf_hub_download(REPO, "config.json", revision=revision)).read_bytes()
        for revision in ("v1.0", first, "main", second)
    }
    assert contents == {"v1.0": b"first", first: b"first", "main": b"second", second: b"second"}
    assert set(server.files(REPO)) == {"EUPE-ViT-S.pt", "config.json"}
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="v2.0")


def test_range_request_gives_the_part(server: HubServer) -> None:
    def fetch(wanted: str) -> bytes:
        url = f"{server.endpoint}/{REPO}/resolve/main/EUPE-ViT-S.pt"
        return urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})).read()

    assert fetch("bytes=10-19") == WEIGHTS[10:20]
    assert fetch("bytes=2999990-4000000") == WEIGHTS[-10:]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        fetch("bytes=3000000-")


def test_model_info_reads_the_card(server: HubServer) -> None:
    info = model_info(REPO)
    assert info.sha == server.repos[REPO].branches["main"] == resolve_revision(REPO).resolved
    assert (info.library_name, info.pipeline_tag, info.tags) == ("transformers", "image-feature-extraction", ["eupe"])
    assert sorted(sibling.rfilename for sibling in info.siblings) == sorted(FILES)
    assert repo_exists(REPO)
    assert not repo_exists("facebook/EUPE-ViT-X")


def test_tree_lists_sizes_and_hashes(server: HubServer) -> None:
    server.commit(REPO, {"onnx/model.onnx": WEIGHTS, "onnx/data/notes.txt": b"notes"})
    entries = {entry.path: entry for entry in list_repo_tree(REPO, recursive=True)}
    assert set(entries) == {*FILES, "onnx/model.onnx", "onnx/data/notes.txt"}
    assert entries["onnx/model.onnx"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (entries["config.json"].blob_id, entries["config.json"].size) == (git_sha1(CONFIG), len(CONFIG))
    assert [entry.path for entry in list_repo_tree(REPO, "onnx")] == ["onnx/model.onnx"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(list_repo_tree(REPO, "missing"))


@pytest.mark.parametrize(("token", "status"), [(None, 401), (TOKEN, 404)])
def test_missing_repo_is_not_found(server: HubServer, token: str | None, status: int) -> None:
    with pytest.raises(RepositoryNotFoundError) as caught:
        hf_hub_download("facebook/EUPE-ViT-X", "config.json", token=token)
    assert caught.value.response.status_code == status
    assert server.repo_ids_requested() == {"facebook/EUPE-ViT-X"}


def test_missing_file_is_not_found(server: HubServer) -> None:
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "model.safetensors")
    assert try_to_load_from_cache(REPO, "model.safetensors") is _CACHED_NO_EXIST


def test_private_repo_needs_a_valid_token(server: HubServer) -> None:
    server.add_repo("me/private", {"config.json": CONFIG}, private=True)
    with pytest.raises(RepositoryNotFoundError) as hidden:
        hf_hub_download("me/private", "config.json")
    assert hidden.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        hf_hub_download("me/private", "config.json", token="hf_wrong")
    assert not isinstance(refused.value, RepositoryNotFoundError)
    assert Path(hf_hub_download("me/private", "config.json", token=TOKEN)).read_bytes() == CONFIG


def test_gated_repo_is_refused(server: HubServer) -> None:
    server.fail(REPO, 403)
    with pytest.raises(GatedRepoError):
        hf_hub_download(REPO, "config.json")


def test_unavailable_hub_is_asked_again(server: HubServer, waits: list[float]) -> None:
    server.fail(REPO, 503, times=2)
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == CONFIG
    assert methods(server) == ["HEAD", "HEAD", "HEAD", "GET"]
    assert waits == [1.0]


def test_unavailable_hub_gives_up_after_five_waits(server: HubServer, waits: list[float]) -> None:
    server.fail(REPO, 503)
    with pytest.raises(LocalEntryNotFoundError) as caught:
        hf_hub_download(REPO, "config.json")
    assert caught.value.__cause__.response.status_code == 503
    assert methods(server) == ["HEAD"] * 7
    assert waits == [1.0] * 5


def test_unavailable_hub_leaves_the_cached_file(server: HubServer, waits: list[float]) -> None:
    path = hf_hub_download(REPO, "config.json")
    server.fail(REPO, 503)
    server.reset_log()
    assert hf_hub_download(REPO, "config.json") == path
    assert methods(server) == ["HEAD"]
    assert waits == []


@pytest.mark.parametrize("status", [500, 503])
def test_error_of_the_body_is_not_retried(server: HubServer, status: int) -> None:
    server.fail(REPO, status, method="GET")
    with pytest.raises(HfHubHTTPError) as caught:
        hf_hub_download(REPO, "config.json")
    assert caught.value.response.status_code == status
    assert methods(server) == ["HEAD", "GET"]
    server.clear_faults()
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == CONFIG


def test_stopped_hub_serves_from_the_cache_alone(server: HubServer, waits: list[float]) -> None:
    path = hf_hub_download(REPO, "config.json")
    server.stop()
    assert hf_hub_download(REPO, "config.json") == path
    assert waits == []
    with pytest.raises(LocalEntryNotFoundError) as caught:
        hf_hub_download(REPO, "README.md")
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert waits == [1, 2, 4, 8, 8]


def test_cut_download_starts_over(server: HubServer, waits: list[float]) -> None:
    server.cut_after(REPO, "EUPE-ViT-S.pt", 1_000_000)
    assert Path(hf_hub_download(REPO, "EUPE-ViT-S.pt")).read_bytes() == WEIGHTS
    assert methods(server) == ["HEAD", "GET", "GET"]
    assert waits == [1]


def test_cut_download_resumes_after_ten_mebibytes(server: HubServer, waits: list[float]) -> None:
    content = random.Random(1).randbytes(12_000_000)
    server.add_repo("me/large", {"model.safetensors": content})
    # Each body is cut, but the one that starts at the ten mebibytes already written is too short for it.
    server.cut_after("me/large", "model.safetensors", 11_000_000, times=None)
    assert Path(hf_hub_download("me/large", "model.safetensors")).read_bytes() == content
    assert methods(server) == ["HEAD", "GET", "GET"]


def test_download_cut_each_time_raises_and_leaves_nothing(server: HubServer, waits: list[float]) -> None:
    server.cut_after(REPO, "EUPE-ViT-S.pt", 1_000_000, times=None)
    with pytest.raises(httpx.RemoteProtocolError, match="1000000"):
        hf_hub_download(REPO, "EUPE-ViT-S.pt")
    assert methods(server) == ["HEAD"] + ["GET"] * 6
    assert waits == [1] * 5
    assert [path.name for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*")] == []


def test_corrupt_body_is_cached_under_the_advertised_hash(server: HubServer) -> None:
    """The client compares sizes, not hashes: to trust a download you have to hash it."""
    server.corrupt(REPO, "EUPE-ViT-S.pt")
    path = Path(hf_hub_download(REPO, "EUPE-ViT-S.pt"))
    assert path.resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
    assert path.read_bytes() == bytes(255 - byte for byte in WEIGHTS)


def test_upload_folder_comes_back_the_same(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    files = {"config.json": CONFIG, "weights/model.bin": WEIGHTS[::-1], "empty.bin": b"", "data": b"a\0b"}
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    assert api.create_repo("me/pushed", private=True).repo_id == "me/pushed"
    commit = api.upload_folder(repo_id="me/pushed", folder_path=tmp_path / "folder")

    assert server.files("me/pushed") == server.files("me/pushed", commit.oid) == files
    assert methods(server).count("PUT") == 2
    assert not repo_exists("me/pushed")
    copy = Path(snapshot_download("me/pushed", token=TOKEN))
    downloaded = [path for path in copy.rglob("*") if path.is_file()]
    assert {path.relative_to(copy).as_posix(): path.read_bytes() for path in downloaded} == files
    assert api.upload_folder(repo_id="me/pushed", folder_path=tmp_path / "folder").oid == commit.oid


def test_create_repo_twice_conflicts(server: HubServer, api: HfApi) -> None:
    assert api.create_repo("mine").repo_id == "tester/mine"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("mine")
    assert caught.value.response.status_code == 409
    assert api.create_repo("mine", exist_ok=True).repo_id == "tester/mine"


def test_stale_parent_conflicts(server: HubServer, api: HfApi) -> None:
    stale = server.repos[REPO].branches["main"]
    head = server.commit(REPO, {"config.json": b"{}"})
    upload = {"path_or_fileobj": b"new", "path_in_repo": "notes.txt", "repo_id": REPO}
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(**upload, parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert "notes.txt" not in server.files(REPO)
    api.upload_file(**upload, parent_commit=head)
    assert server.files(REPO)["notes.txt"] == b"new"


def test_upload_to_a_tag_is_refused(server: HubServer, api: HfApi) -> None:
    server.tag(REPO, "v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id=REPO, revision="v1.0")
    assert server.files(REPO, "v1.0") == FILES


def test_delete_removes_files_and_folders(server: HubServer, api: HfApi) -> None:
    server.commit(REPO, {"old/a.txt": b"a", "old/b.txt": b"b"})
    operations = [CommitOperationDelete("old/"), CommitOperationDelete("config.json")]
    api.create_commit(REPO, operations, commit_message="Delete")
    assert set(server.files(REPO)) == {"EUPE-ViT-S.pt", "README.md"}
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.delete_file("config.json", REPO)


def test_failed_commit_leaves_the_repo_alone(server: HubServer, api: HfApi) -> None:
    server.fail_uploads(500, step="commit")
    with pytest.raises(HfHubHTTPError):
        api.upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id=REPO)
    assert server.files(REPO) == FILES
    assert methods(server).count("POST") == 2


def test_failed_lfs_upload_is_sent_again(server: HubServer, api: HfApi, waits: list[float]) -> None:
    server.fail_uploads(503, times=1, step="lfs_upload")
    api.upload_file(path_or_fileobj=b"new weights", path_in_repo="EUPE-ViT-S.pt", repo_id=REPO)
    assert server.files(REPO)["EUPE-ViT-S.pt"] == b"new weights"
    assert (methods(server).count("PUT"), waits) == (2, [1.0])


def test_upload_needs_a_token_and_a_valid_card(server: HubServer, api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        HfApi().upload_file(path_or_fileobj=b"new", path_in_repo="notes.txt", repo_id=REPO)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().create_repo("mine")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\ntags: [\n---\n", path_in_repo="README.md", repo_id=REPO)
    assert server.files(REPO) == FILES
    assert api.whoami()["name"] == "tester"


def test_unknown_request_fails_loudly(server: HubServer, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="does not know GET /api/models") as caught:
        list(api.list_models())
    assert caught.value.response.status_code == 501


def test_pushed_config_loads(server: HubServer) -> None:
    tiny_config().push_to_hub("me/tiny", token=TOKEN)
    assert set(server.files("me/tiny")) == {"README.md", "config.json"}
    assert AutoConfig.from_pretrained("me/tiny").hidden_size == 8


def test_pushed_model_loads_and_stays_in_the_cache(server: HubServer, tmp_path: Path) -> None:
    model = ViTModel(tiny_config())
    with use_hub(server, tmp_path / "writer", token=TOKEN):
        model.push_to_hub("me/tiny", revision="draft")
    assert server.files("me/tiny") == {}
    assert set(server.files("me/tiny", "draft")) == {"README.md", "config.json", "model.safetensors"}

    loaded = AutoModel.from_pretrained("me/tiny", revision="draft")
    assert isinstance(loaded, ViTModel)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    server.reset_log()
    with use_hub(server, tmp_path / "home", offline=True):
        again = AutoModel.from_pretrained("me/tiny", revision="draft")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert server.requests == []


def test_remote_code_stays_in_the_home(server: HubServer, tmp_path: Path) -> None:
    code = b"from transformers import ViTConfig\nclass MyConfig(ViTConfig):\n    model_type = 'mine'\n"
    config = b'{"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}'
    server.add_repo("me/code", {"mine.py": code, "config.json": config})
    for home in ("first", "second"):
        with use_hub(server, tmp_path / home):
            loaded = AutoConfig.from_pretrained("me/code", trust_remote_code=True)
            assert type(loaded).__name__ == "MyConfig"
            assert Path(sys.modules[type(loaded).__module__].__file__).is_relative_to(tmp_path / home)
        assert not [name for name in sys.modules if name.startswith("transformers_modules")]
        assert not [path for path in sys.path if path.startswith(str(tmp_path))]


def test_use_hub_restores_the_process(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        api = sys.modules["huggingface_hub.hf_api"].api
        return {**vars(constants)}, {**os.environ}, [*sys.path], api.endpoint, HfApi().endpoint

    before = state()
    with HubServer() as server, use_hub(server, tmp_path, token=TOKEN):
        assert HfApi().endpoint == server.endpoint == os.environ["HF_ENDPOINT"]
        assert state() != before
    assert state() == before


def test_subprocess_uses_the_hub(server: HubServer, tmp_path: Path) -> None:
    program = (
        "from huggingface_hub import hf_hub_download, upload_file\n"
        f"upload_file(path_or_fileobj=b'pushed', path_in_repo='new.bin', repo_id='{REPO}')\n"
        f"print(hf_hub_download('{REPO}', 'new.bin'))\n"
    )
    environment = hub_environment(server, tmp_path / "child", token=TOKEN)
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    path = Path(child.stdout.strip())
    assert path.read_bytes() == server.files(REPO)["new.bin"] == b"pushed"
    assert path.is_relative_to(tmp_path / "child")
