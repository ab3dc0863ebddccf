"""A Hugging Face Hub on 127.0.0.1, for tests that want the real client and no network.

[`HubServer`] keeps model repositories in memory and answers the part of the Hub's HTTP protocol that `huggingface_hub`
and transformers' `from_pretrained` and `push_to_hub` speak. It answers anything else with 501, so that an unexpected
call fails instead of passing by accident. To point a client at it, [`hub_environment`] makes the environment of a
subprocess and [`use_hub`] serves this process.

Known differences from the Hub: a new repository starts empty (the Hub adds `.gitattributes`), a valid token may read
and write every repository, a tree listing has files and no folders, LFS files come from the same address instead of
a CDN, and there is no Xet storage. The last one needs `HF_HUB_DISABLE_XET=1` in the client, which both helpers set:
where `hf_xet` is installed, uploads go through Xet whatever the server answers.
"""

import base64
import hashlib
import json
import os
import re
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import transformers.dynamic_module_utils
import transformers.utils.hub
import yaml
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _cache_manager, close_session


USER = "tester"
TOKEN = "hf_stand_in"
LFS_SUFFIXES = (".bin", ".ckpt", ".gz", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors", ".zip")
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}
UPLOAD_STEPS = ("create_repo", "preupload", "lfs_batch", "lfs_upload", "commit")

# A repository id is one segment or two; lazily, for `/api/models/gpt2/tree/main` names the repository gpt2.
REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)??)"
REVISION = r"(?P<revision>[^/]+)"
# The first pattern that matches names the method that answers: model_info stands last, or it would take `gpt2/tree`
# for a repository.
ROUTES = (
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (r"POST /api/repos/create", "create_repo"),
    (rf"POST /api/models/{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
    (rf"POST /api/models/{REPO}/preupload/{REVISION}", "preupload"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs-objects/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    (rf"POST /api/models/{REPO}/commit/{REVISION}", "commit"),
    (rf"(?:HEAD|GET) /{REPO}/resolve/{REVISION}/(?P<path>.+)", "download"),
    (rf"GET /api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
    (rf"GET /api/models/{REPO}(?:/revision/{REVISION})?", "model_info"),
)
# The upload of an LFS object carries no token: the Hub signs its address instead.
TOKEN_NEEDED = ("whoami", "create_repo", "create_branch", "preupload", "lfs_batch", "commit")


def is_lfs(path: str, content: bytes) -> bool:
    """Whether the Hub keeps a file as an LFS object: a binary suffix, or a NUL in the 512 bytes it sees of an upload.

    An empty file never is one: the client commits it as a regular file whatever the server says.
    """
    return bool(content) and (path.endswith(LFS_SUFFIXES) or b"\0" in content[:512])


def sha256(content: bytes) -> str:
    """Return the id of an LFS object."""
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    """Return the id of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    """Return the hash by which the Hub and the client's cache know a file."""
    return sha256(content) if is_lfs(path, content) else git_sha1(content)


def front_matter(readme: bytes) -> dict[str, Any]:
    """Return the YAML block at the top of a model card, empty where there is none; `yaml.YAMLError` if malformed."""
    block = re.match(rb"---\r?\n(.*?)\r?\n---", readme, flags=re.DOTALL)
    return (yaml.safe_load(block.group(1)) or {}) if block else {}


class HubError(Exception):
    """An error answer of the Hub; `code` is what the client turns into an exception class."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if status >= 500:
            # Without this the client waits 23 s over its five retries; with it, one second before each.
            self.headers["Retry-After"] = "0"


@dataclass
class Fault:
    """An injected failure: `value` is a status or a number of bytes, `only` limits it to one method or upload step."""

    value: int
    times: int | None
    only: str | None = None

    def strikes(self, what: str = "") -> bool:
        """Return whether the fault hits this request; if so it has one time less to go."""
        if self.times == 0 or self.only not in (None, what):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Repo:
    """A model repository: the files of each commit by its id, and the branches and tags that name commits."""

    repo_id: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        """Return the commit id of a branch, a tag or a commit id; `HubError` 404 if there is none."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        """Make `files` the whole content of a branch and return the id of the commit, the same in every run."""
        hashes = sorted((path, etag(path, content)) for path, content in files.items())
        sha = hashlib.sha1(json.dumps([self.repo_id, self.branches.get(branch), hashes]).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class HubServer:
    """The stand-in Hub: its state, and what tests do to it and ask of it.

    ```python
    with HubServer() as server, use_hub(server, tmp_path):
        server.add_repo("facebook/EUPE-ViT-S", {"EUPE-ViT-S.pt": b"weights"})
        path = hf_hub_download("facebook/EUPE-ViT-S", "EUPE-ViT-S.pt")
    ```

    Attributes:
        tokens: The valid access tokens, at first `TOKEN` alone. Private repositories and every write need one.
        requests: Method and path (without the query) of each request since the start or the last `reset_log`.
    """

    def __init__(self) -> None:
        self.tokens = {TOKEN}
        self.requests: list[tuple[str, str]] = []
        self.repos: dict[str, Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self._repo_ids: set[str] = set()
        self._http: ThreadingHTTPServer | None = None
        self.clear_faults()

    def __enter__(self) -> "HubServer":
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(HubRequestHandler, self))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from here on; leaving the context does it too."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    @property
    def endpoint(self) -> str:
        """The address to give to the client as `HF_ENDPOINT`."""
        if self._http is None:
            raise RuntimeError("HubServer has no address before it runs; enter it with `with HubServer() as server:`.")
        return f"http://127.0.0.1:{self._http.server_port}"

    def add_repo(self, repo_id: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> str:
        """Create a repository with one commit on `main` and return the commit's id."""
        with self.lock:
            if repo_id in self.repos:
                raise ValueError(f"{repo_id} exists already; add a commit to it with `HubServer.commit`.")
            self.repos[repo_id] = Repo(repo_id, private)
            return self.commit(repo_id, files or {})

    def commit(self, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Add a commit that writes `files` over those of the branch and return its id; `None` deletes a file."""
        with self.lock:
            repo = self.repos[repo_id]
            merged = {**repo.commits.get(repo.branches.get(branch, ""), {}), **files}
            present = {path: content for path, content in merged.items() if content is not None}
            self.lfs_objects |= {sha256(data): data for path, data in present.items() if is_lfs(path, data)}
            return repo.commit(present, branch)

    def tag(self, repo_id: str, tag: str, revision: str = "main") -> None:
        """Point a tag at the commit that `revision` names now."""
        self.repos[repo_id].tags[tag] = self.repos[repo_id].resolve(revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision by path, to look at what a push left."""
        repo = self.repos[repo_id]
        return dict(repo.commits[repo.resolve(revision)])

    def repo_ids_requested(self) -> set[str]:
        """Return the repositories that requests named since the last `reset_log`, existing or not."""
        return set(self._repo_ids)

    def reset_log(self) -> None:
        """Forget the requests seen so far."""
        self.requests.clear()
        self._repo_ids.clear()

    def fail(self, repo_id: str, status: int, times: int | None = None, method: str | None = None) -> None:
        """Answer the next `times` requests that name a repository (`None`: all) with an error status.

        401 and 404 look like a repository that is not there, 403 like a gated one. `method` limits the failure to
        one HTTP method: `"GET"` lets a download get past its `HEAD`.
        """
        self._failing[repo_id] = Fault(status, times, method)

    def fail_uploads(self, status: int, times: int | None = None, step: str | None = None) -> None:
        """Answer the next `times` requests of a push (`None`: all) with an error status, at one of `UPLOAD_STEPS`."""
        if step not in (None, *UPLOAD_STEPS):
            raise ValueError(f"step is {step!r}, it must be None or one of {', '.join(UPLOAD_STEPS)}.")
        self._failing_uploads = Fault(status, times, step)

    def cut_after(self, repo_id: str, path: str, n_bytes: int, times: int | None = 1) -> None:
        """Close the connection after `n_bytes` of a file's body, `times` times, having promised the whole of it."""
        self._cuts[repo_id, path] = Fault(n_bytes, times)

    def corrupt(self, repo_id: str, path: str) -> None:
        """Serve a body of the right size whose every byte differs from what the ETag stands for."""
        self._corrupt.add((repo_id, path))

    def clear_faults(self) -> None:
        """Undo every `fail`, `fail_uploads`, `cut_after` and `corrupt`."""
        self._failing: dict[str, Fault] = {}
        self._failing_uploads = Fault(0, times=0)
        self._cuts: dict[tuple[str, str], Fault] = {}
        self._corrupt: set[tuple[str, str]] = set()

    def receive(self, method: str, path: str, route: str, repo_id: str | None) -> None:
        """Log a request, and raise the injected failure that hits it, if one does."""
        self.requests.append((method, path))
        if repo_id is not None:
            self._repo_ids.add(repo_id)
            fault = self._failing.get(repo_id)
            if fault is not None and fault.strikes(method):
                raise HubError(fault.value, ERROR_CODES.get(fault.value), f"Injected failure for {repo_id}")
        if route in UPLOAD_STEPS and self._failing_uploads.strikes(route):
            raise HubError(self._failing_uploads.value, None, f"Injected failure of {route}")

    def body_to_serve(self, repo_id: str, path: str, content: bytes) -> tuple[bytes, int | None]:
        """Return what a download of `content` really sends, and after how many bytes it breaks off (`None`: never)."""
        if (repo_id, path) in self._corrupt:
            content = content.translate(bytes(reversed(range(256))))
        cut = self._cuts.get((repo_id, path))
        return content, cut.value if cut is not None and cut.strikes() else None


@dataclass
class Reply:
    """An HTTP answer; with `cut`, the connection closes after so many bytes of the body."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    cut: int | None = None

    @classmethod
    def json(cls, content: Any, status: int = 200) -> "Reply":
        """Make an answer of JSON data; what JSON lacks, such as a date in a model card, becomes text."""
        return cls(json.dumps(content, default=str).encode(), {"Content-Type": "application/json"}, status)


class HubRequestHandler(BaseHTTPRequestHandler):
    """The protocol: one method for each name in `ROUTES`, on the state of a [`HubServer`]."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the log is `HubServer.requests`."""

    def answer(self) -> None:
        """Answer one request and close the connection, so that a stopped server leaves none half alive."""
        self.close_connection = True
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.hub.lock:
                reply = self.dispatch()
        except HubError as error:
            reply = Reply.json({"error": str(error)}, error.status)
            reply.headers |= error.headers
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": len(reply.body), "Connection": "close"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut])

    # The names that http.server looks for.
    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def dispatch(self) -> Reply:
        """Find the route of the request, log it, apply injected failures and tokens, and run it."""
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        matches = ((re.fullmatch(pattern, f"{self.command} {url.path}"), route) for pattern, route in ROUTES)
        match, route = next((pair for pair in matches if pair[0]), (None, ""))
        # Unquoted after the match only: a revision may hold a slash.
        arguments = {key: unquote(value) for key, value in match.groupdict().items() if value} if match else {}
        self.hub.receive(self.command, url.path, route, arguments.get("repo_id"))
        if not route:
            raise HubError(501, None, f"The stand-in Hub does not know {self.command} {url.path}")
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token and self.token not in self.hub.tokens:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        if not self.token and route in TOKEN_NEEDED:
            # The client reads a 401 as "no such repository" at https addresses only, hence the code.
            raise HubError(401, "RepoNotFound" if "repo_id" in arguments else None, "Invalid username or password.")
        return getattr(self, route)(**arguments)

    def repo(self, repo_id: str) -> Repo:
        """Return a repository that the request may see; like the Hub, do not tell a hidden one from a missing one."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.token):
            raise HubError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def whoami(self) -> Reply:
        """Answer `HfApi.whoami`."""
        return Reply.json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self) -> Reply:
        """Check a model card, which the client asks for before a commit."""
        try:
            metadata = front_matter(json.loads(self.body)["content"].encode())
        except yaml.YAMLError as error:
            return Reply.json({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return Reply.json({"errors": [], "warnings": warnings})

    def create_repo(self) -> Reply:
        """Answer `HfApi.create_repo`, which wants the address back from a 409 as well."""
        wanted = json.loads(self.body)
        if wanted.get("type", "model") != "model":
            raise HubError(501, None, f"The stand-in Hub has no repositories of type {wanted['type']}")
        repo_id = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            return Reply.json({"error": "You already created this model repo", "url": url}, status=409)
        self.hub.add_repo(repo_id, private=wanted.get("visibility") == "private")
        return Reply.json({"url": url})

    def create_branch(self, repo_id: str, branch: str) -> Reply:
        """Answer `HfApi.create_branch`, which a push to another revision than `main` begins with."""
        repo = self.repo(repo_id)
        if branch in repo.branches:
            raise HubError(409, None, f"Reference already exists: {branch}")
        repo.branches[branch] = repo.resolve(json.loads(self.body).get("startingPoint", "main"))
        return Reply.json({})

    def model_info(self, repo_id: str, revision: str = "main") -> Reply:
        """Answer `HfApi.model_info`, and with it `repo_exists` and `resolve_revision`."""
        repo = self.repo(repo_id)
        sha = repo.resolve(revision)
        files = repo.commits[sha]
        card = front_matter(files.get("README.md", b""))
        info = {"id": repo_id, "sha": sha, "private": repo.private, "cardData": card, "tags": card.get("tags", [])}
        info |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        return Reply.json({**info, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, repo_id: str, revision: str, path: str = "") -> Reply:
        """Answer `HfApi.list_repo_tree` for the whole repository or one folder; git holds pointers for LFS files."""
        repo = self.repo(repo_id)
        folder = f"{path}/" if path else ""
        files = {name: data for name, data in repo.commits[repo.resolve(revision)].items() if name.startswith(folder)}
        if folder and not files:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
        entries = []
        for name, data in sorted(files.items()):
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
            if is_lfs(name, data):
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n"
                entry["oid"] = git_sha1(pointer.encode())
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": len(pointer)}
            if self.query.get("recursive") == ["true"] or "/" not in name.removeprefix(folder):
                entries.append(entry)
        return Reply.json(entries)

    def download(self, repo_id: str, revision: str, path: str) -> Reply:
        """Serve a file, or the part from `first` to `last` that a `Range: bytes=first-last` header asks for."""
        repo = self.repo(repo_id)
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            # The client remembers by commit that a file is missing, and asks no more.
            raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag(path, content)}"', "Accept-Ranges": "bytes"}
        if is_lfs(path, content):
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            return Reply(content, headers)
        body, cut = self.hub.body_to_serve(repo_id, path, content)
        if "Range" not in self.headers:
            return Reply(body, headers, cut=cut)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"])
        first, last = (int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)) if wanted else (1, 0)
        if first > last:
            raise HubError(416, None, "No such range", {"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return Reply(body[first : last + 1], headers, status=206, cut=cut)

    def preupload(self, repo_id: str, revision: str) -> Reply:
        """Say for each new file whether it goes up as LFS, and the hash of the one it replaces."""
        repo = self.repo(repo_id)
        present = repo.commits[repo.resolve(revision)]
        answers = []
        for new in json.loads(self.body)["files"]:
            path = new["path"]
            mode = "lfs" if is_lfs(path, base64.b64decode(new["sample"])) else "regular"
            oid = etag(path, present[path]) if path in present else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Reply.json({"files": answers})

    def lfs_batch(self, repo_id: str) -> Reply:
        """Say where to upload the LFS objects that are not here yet."""
        self.repo(repo_id)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(self.body)["objects"]]
        for entry in objects:
            if entry["oid"] not in self.hub.lfs_objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs-objects/{entry['oid']}"}}
        return Reply.json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> Reply:
        """Take an LFS object in."""
        if sha256(self.body) != oid:
            raise HubError(400, None, f"The content sent does not have the SHA-256 {oid}")
        self.hub.lfs_objects[oid] = self.body
        return Reply()

    def commit(self, repo_id: str, revision: str) -> Reply:
        """Apply a commit, sent as one JSON object a line: a header, then the operations."""
        repo = self.repo(repo_id)
        if revision not in repo.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        head = repo.branches[revision]
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if not head.startswith(header["value"].get("parentCommit", head)):
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, bytes | None] = {}
        for operation in operations:
            changes |= self.changes(operation["key"], operation["value"], repo.commits[head])
        pull_request = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
        if "create_pr" in self.query:
            revision = f"refs/pr/{pull_request}"
            repo.branches[revision] = head
        sha = self.hub.commit(repo_id, changes, revision)
        address = f"{self.hub.endpoint}/{repo_id}"
        urls = {"commitUrl": f"{address}/commit/{sha}", "pullRequestUrl": f"{address}/discussions/{pull_request}"}
        return Reply.json({"commitOid": sha, **urls})

    def changes(self, key: str, value: dict[str, str], present: dict[str, bytes]) -> dict[str, bytes | None]:
        """Return the files that one operation of a commit writes or, with `None`, deletes."""
        path = value["path"]
        if key == "file":
            return {path: base64.b64decode(value["content"])}
        if key == "lfsFile":
            if value["oid"] not in self.hub.lfs_objects:
                raise HubError(400, None, f"{path} points to LFS object {value['oid']}, which was not uploaded")
            return {path: self.hub.lfs_objects[value["oid"]]}
        folder = f"{path.rstrip('/')}/"
        gone = [name for name in present if (name.startswith(folder) if key == "deletedFolder" else name == path)]
        if not gone:
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        return dict.fromkeys(gone)


def hub_environment(
    server: HubServer, home: str | Path, token: str | None = None, offline: bool = False
) -> dict[str, str]:
    """Return the whole environment of a subprocess whose Hub is `server`.

    It is this process's environment without its proxies and its Hugging Face settings, and with the server's.

    Args:
        server: A running server.
        home: The subprocess's `HF_HOME`; its downloads, its token and its remote code stay inside.
        token: The access token it sends, none by default.
        offline: Whether it may use its cache alone.
    """
    dropped = re.compile(r"(HF_|HUGGING|TRANSFORMERS_).*|(http|https|all|no)_proxy", flags=re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if not dropped.fullmatch(name)}
    environment |= {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
        # Else transformers asks a service outside to convert the .bin weights that it loads.
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return environment if token is None else {**environment, "HF_TOKEN": token}


@contextmanager
def use_hub(
    server: HubServer, home: str | Path, token: str | None = None, offline: bool = False
) -> Iterator[HubServer]:
    """Make `server` the Hub of `huggingface_hub` and transformers in this process, and of the subprocesses it starts.

    The arguments are those of [`hub_environment`]. Everything is put back on exit. Reliable for code that asks
    `huggingface_hub.constants` when it runs, as both libraries do; a library that copies a setting when it is imported
    (datasets does) has to run in a subprocess with [`hub_environment`].
    """
    with ExitStack() as stack:
        environment = hub_environment(server, home, token, offline)
        stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
        # The client computes its settings once, from the environment; let its own code compute them once more.
        settings = {name: value for name, value in runpy.run_path(str(constants.__file__)).items() if name.isupper()}
        stack.enter_context(mock.patch.multiple(constants, **settings))
        stack.enter_context(mock.patch.object(_cache_manager, "HF_HUB_CACHE", constants.HF_HUB_CACHE))
        stack.enter_context(mock.patch.multiple(hf_api.api, endpoint=server.endpoint, _whoami_cache={}))
        modules = {"HF_MODULES_CACHE": str(Path(home) / "modules")}
        stack.enter_context(mock.patch.multiple(transformers.utils.hub, _hf_api=None, **modules))
        stack.enter_context(mock.patch.multiple(transformers.dynamic_module_utils, **modules))
        # Remote code puts its folder on the path and stays imported under this name.
        stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
        stack.callback(sys.modules.update, forget_remote_code())
        stack.callback(forget_remote_code)
        # The shared HTTP client keeps the proxies of the environment that it was made in.
        close_session()
        stack.callback(close_session)
        yield server


def forget_remote_code() -> dict[str, Any]:
    """Unload the modules that transformers imported from the Hub, and return them."""
    prefix = transformers.utils.hub.TRANSFORMERS_DYNAMIC_MODULE_NAME
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == prefix}
