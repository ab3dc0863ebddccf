# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Publish a model on the Hub in one commit: weights, configuration, processor, modelling files and card.

Without --push, nothing is sent: the script looks at the repository and prints its plan.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import Parser
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from eupe_hf.conversion import check_head_options, convert_checkpoint
from eupe_hf.hub import fetch
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.staging import scratch_folder
from eupe_hf.variants import VARIANTS, variant_config


EXAMPLE = """\
  python conversion/publish.py --checkpoint EUPE-ViT-S.pt --card eupe-s --repo USER/eupe-s
  python conversion/publish.py --folder my-finetuned --repo USER/my-finetuned --private --push
"""
CARDS = Path(__file__).resolve().parents[1] / "model_cards"
CONFIGS = ("config.json", "adapter_config.json")
# The files of a model. Everything else in a folder (optimizers, logs, scripts, projectors) is left out.
MODEL_FILES = re.compile(
    r"(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|\w+_eupe\w*\.py|README\.md|results\.json|curve\.png"
    r"|(config|eupe_config|adapter_config|generation_config|preprocessor_config|processor_config|tokenizer"
    r"|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt|tokenizer\.model"
    r"|chat_template\.(jinja|json)"
)
WEIGHTS = re.compile(r"[^/]+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)(\.index\.json)?")
# Fields of a configuration that may change while the model stays the same.
VOLATILE = ("transformers_version", "peft_version", "auto_map", "dtype", "_name_or_path", "inference_mode")


@dataclass(frozen=True)
class Plan:
    """One commit: `deleted` are old files that would be taken for parts of the new model."""

    files: dict[str, Path]
    parent: str | None = None  # None: there is no repository yet
    present: frozenset[str] = frozenset()
    deleted: tuple[str, ...] = ()
    new_branch: bool = False

    def lines(self) -> list[str]:
        """The files, with sizes."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        lines = [f"  {'replace' if n in self.present else 'add':8}{size:>15,}  {n}" for n, size in sizes.items()]
        lines += [f"  {'delete':8}{'':>15}  {name}" for name in self.deleted]
        return [*lines, f"  {len(sizes)} files, {sum(sizes.values()):,} bytes."]


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE_OR_DIR", help="convert this first, from any layout")
    source.add_argument("--folder", type=Path, metavar="DIR", help="a model or adapter that save_pretrained wrote")
    source.add_argument("--name", choices=tuple(VARIANTS), help="the published weights of this name, from the Hub")
    parser.add_source_options()
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository on the Hub")
    card = "the card: a model's name for its published weights, unchanged, or a file (default: the folder's)"
    parser.add_argument("--card", metavar="NAME_OR_FILE", help=card)
    parser.add_argument("--push", action="store_true", help="upload; without this nothing is sent")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    branch = parser.add_mutually_exclusive_group()
    branch.add_argument("--revision", metavar="BRANCH", help="the branch to commit to; created if it does not exist")
    branch.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--overwrite", action="store_true", help="replace another model in the repository")
    parser.add_argument("--message", default="Upload model with eupe-hf", help="of the commit (default: %(default)s)")
    return parser


def main_config(folder: Path) -> str:
    """Check that a folder holds a model of this package. Returns the name of the file that describes it."""
    names = [name for name in CONFIGS if (folder / name).is_file()]
    weights = sorted(folder.glob("*model*.safetensors"))
    texts = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*config.json"))
    if not names or not weights or not re.search(r'"model_type":\s*"eupe', texts):
        raise ValueError(
            f"{folder} holds no EUPE model: expected config.json (or adapter_config.json with eupe_config.json) and "
            ".safetensors, as save_pretrained writes them. For other layouts use --checkpoint."
        )
    try:
        for path in weights:
            safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut short ({error}): save the model again.") from error
    return names[0]


def refuse_links(folder: Path) -> None:
    """Raise `ValueError` if a file of the model is a link: the Hub would get what it points to, wherever that lies."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in entries:
        if path.is_symlink() and MODEL_FILES.fullmatch(path.name):
            raise ValueError(
                f"{path} is a link to {path.readlink()}, and links are not followed: put a copy of the file in its "
                "place, if you want to publish it."
            )


def new_card(folder: Path, wanted: str | None, repo_id: str) -> ModelCard:
    """The card, with the repository's name in its code and the licence of the weights in its metadata."""
    path = Path(wanted) if wanted else folder / "README.md"
    if wanted in VARIANTS:
        path = CARDS / f"{wanted}.md"
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = variant_config(wanted).to_dict()
        fields = ("model_type", "backbone_type", "hidden_size", "num_hidden_layers", "depths", "hidden_sizes")
        if config.get("architectures") != ["EupeModel"] or any(config.get(key) != shape.get(key) for key in fields):
            raise ValueError(f"The card of {wanted} is for its encoder alone, which this is not: give another --card.")
    if not path.is_file():
        raise ValueError(f"There is no card at {path}: give one with --card FILE, or save the model again.")
    card = ModelCard.load(path)
    for key, value in WEIGHTS_LICENSE.items():
        stated = getattr(card.data, key, None)
        if stated not in (None, value):
            raise ValueError(
                f"{path} states {key}: {stated}, but EUPE's weights and everything derived from them are under "
                f"{WEIGHTS_LICENSE['license_name']}: state {key}: {value}, or leave it out and it is added."
            )
        setattr(card.data, key, value)
    card.text = card.text.replace('"PATH"', f'"{repo_id}"')
    return card


def look(api: HfApi, args: argparse.Namespace, files: dict[str, Path], config: str) -> Plan:
    """Compare with what the repository holds. Raises `ValueError` for what must not be replaced."""
    try:
        info = api.model_info(args.repo)
    except RepositoryNotFoundError:
        if args.create_pr:
            raise ValueError(f"{args.repo} does not exist: a pull request needs a repository.") from None
        return Plan(files)
    if args.private and not info.private:
        raise ValueError(f"{args.repo} exists and is public: --private is for a new repository; change it on the Hub.")
    new_branch = False
    if args.revision:
        try:
            info = api.model_info(args.repo, revision=args.revision)
        except RevisionNotFoundError:
            new_branch = True
    present = frozenset(file.rfilename for file in info.siblings)
    weights = sorted(name for name in present if WEIGHTS.fullmatch(name))
    difference = f"it has {weights[0]} and no {config}" if weights else None
    if config in present:
        there = Path(hf_hub_download(args.repo, config, revision=info.sha))
        difference = _difference(*(json.loads(path.read_text(encoding="utf-8")) for path in (there, files[config])))
    if difference and not args.overwrite:
        raise ValueError(f"{args.repo} holds another model: {difference}; give another --repo, or --overwrite.")
    old = {name for name in present if MODEL_FILES.fullmatch(name) and (difference or name in weights)}
    deleted = tuple(sorted((old | set(weights if difference else ())) - files.keys()))
    return Plan(files, info.sha, present, deleted, new_branch)


def _difference(there: Any, here: Any) -> str | None:
    """The first field in which two configurations differ, in words."""
    for key in sorted({*there, *here} - {*VOLATILE}):
        one, other = _sorted(there.get(key)), _sorted(here.get(key))
        if isinstance(one, dict) and isinstance(other, dict):
            if (difference := _difference(one, other)) is not None:
                return f"{key}.{difference}"
        elif one != other:
            return f"{key} is {json.dumps(one)} there and {json.dumps(other)} here"
    return None


def _sorted(value: Any) -> Any:
    # peft writes sets of names, in any order
    return sorted(value) if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else value


def push(api: HfApi, plan: Plan, args: argparse.Namespace) -> str:
    """Upload as planned, in one commit. Returns the URL of the commit or pull request."""
    if plan.parent is None:
        api.create_repo(args.repo, private=args.private)
    if args.revision and (plan.new_branch or plan.parent is None):
        api.create_branch(args.repo, branch=args.revision, revision=plan.parent)
    operations = [CommitOperationAdd(name, path) for name, path in plan.files.items()]
    operations += [CommitOperationDelete(name) for name in plan.deleted]
    options = {"revision": args.revision, "create_pr": args.create_pr, "parent_commit": plan.parent}
    done = api.create_commit(args.repo, operations, commit_message=args.message, **options)
    return done.pr_url or done.commit_url


def reason(error: Exception, repo_id: str) -> str:
    """Why the Hub refused, in one sentence."""
    reasons = {
        401: f"The Hub does not know you: log in with `hf auth login`, or set HF_TOKEN, to write to {repo_id}.",
        403: f"Your token may not write to {repo_id}: use one with write access, or another --repo.",
        412: f"{repo_id} has a newer commit, which was kept: check it, then push again.",
    }
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return reasons.get(status, f"The upload failed, and the files in {repo_id} are as they were ({first}): try again.")


def publish(args: argparse.Namespace, folder: Path, scratch: Path) -> None:
    """Print the plan, and with --push carry it out."""
    refuse_links(folder)
    api, config = HfApi(), main_config(folder)
    new_card(folder, args.card or args.name, args.repo).save(scratch / "README.md")
    entries = sorted(path for path in folder.iterdir() if path.name != "README.md")
    files = {path.name: path for path in entries if path.is_file() and MODEL_FILES.fullmatch(path.name)}
    plan = look(api, args, {"README.md": scratch / "README.md", **files}, config)
    where = f"at {plan.parent[:12]}" if plan.parent else f"new, {'private' if args.private else 'public'}"
    print("\n".join([f"One commit to {args.repo}, {where}:", *plan.lines()]))
    if left_out := [path.name for path in entries if path.name not in files]:
        print(f"Left out, not part of the model: {', '.join(left_out)}.")
    print(f"Published: {push(api, plan, args)}" if args.push else "Nothing was sent; --push uploads it.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.head and not args.checkpoint:
        parser.error("--head joins a raw encoder; it needs --checkpoint FILE")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        parser.error(f"--repo must be USER/NAME, got {args.repo!r}")
    # its name is always the same, so that the next run removes what one that was killed has left
    with parser.exit_codes(), scratch_folder(Path(tempfile.gettempdir(), "eupe-publish")) as scratch:
        check_head_options(args.head, args.task, args.layers)
        # in a folder of its own: writing a folder locks the one that it lies in, and `scratch` is locked
        folder = fetch(args.name) if args.name else args.folder or scratch / "converted" / "model"
        if args.checkpoint:
            options = {"variant": args.variant, "head": args.head, "task": args.task, "layers": args.layers}
            print("\n".join(convert_checkpoint(args.checkpoint, folder, **options).notes))
        try:
            publish(args, folder, scratch)
        except (HTTPError, RuntimeError) as error:  # RuntimeError: how huggingface_hub reports a broken upload
            raise OSError(reason(error, args.repo)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
