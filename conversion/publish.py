# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Publish a model on the Hub: weights, configuration, processor, modelling files and card, in one commit.

Without --push nothing is sent: it says what would be, and asks the Hub what is there.
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

from convert_eupe_to_hf import add_source_options
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from eupe_hf.conversion import OptionError, check_head_options, convert
from eupe_hf.hub import fetch
from eupe_hf.models.configuration_eupe import WEIGHTS_LICENSE
from eupe_hf.variants import VARIANTS, variant_config


EXAMPLE = """example:
  python conversion/publish.py --checkpoint EUPE-ViT-S.pt --card eupe-s --repo USER/eupe-s
  python conversion/publish.py --folder my-finetuned --repo USER/my-finetuned --private --push
"""
CARDS = Path(__file__).resolve().parents[1] / "model_cards"
CONFIGS = ("config.json", "adapter_config.json")
# What of a folder is the model. The rest (optimizers, logs, scripts, projectors) stays where it is.
MODEL_FILES = re.compile(
    r"(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|\w+_eupe\w*\.py|README\.md|results\.json|curve\.png"
    r"|(config|eupe_config|adapter_config|generation_config|preprocessor_config|processor_config|tokenizer"
    r"|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt|tokenizer\.model"
    r"|chat_template\.(jinja|json)"
)
WEIGHTS = re.compile(r"[^/]+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)(\.index\.json)?")
# Fields of a configuration that change without the model's being another one.
VOLATILE = ("transformers_version", "peft_version", "auto_map", "dtype", "_name_or_path", "inference_mode")


@dataclass
class Plan:
    """What is to be uploaded, and to what.

    Args:
        files: What goes there, by name: the file, or its content.
        left_out: Names of what else the folder holds.
        parent: The commit that was looked at; `None` where there is no repository.
        present: Names of the files in it.
        new_branch: The revision has to be made.
        deleted: Names of the files in it that would be taken for parts of the new model.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]
    parent: str | None = None
    present: frozenset[str] = frozenset()
    new_branch: bool = False
    deleted: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The files, with sizes."""
        sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in self.files.items()}
        lines = [f"  {'replace' if n in self.present else 'add':8}{size:>15,}  {n}" for n, size in sizes.items()]
        lines += [f"  {'delete':8}{'':>15}  {name}" for name in self.deleted]
        return [*lines, f"  {len(sizes)} files, {sum(sizes.values()):,} bytes."]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its way to end with an error, and what the user asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="convert this first: a raw file, or a folder in DINOv3's layout",
    )
    source.add_argument("--folder", type=Path, metavar="DIR", help="a model or adapter that save_pretrained wrote")
    source.add_argument("--name", choices=tuple(VARIANTS), help="the published weights of this name, from the Hub")
    add_source_options(parser)
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository on the Hub")
    parser.add_argument(
        "--card",
        metavar="NAME_OR_FILE",
        help="the card: a model's name for its published weights, unchanged, or a file (default: the folder's)",
    )
    parser.add_argument("--push", action="store_true", help="do it; without this nothing is sent")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    branch = parser.add_mutually_exclusive_group()
    branch.add_argument("--revision", metavar="BRANCH", help="the branch to commit to; it is made if need be")
    branch.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--overwrite", action="store_true", help="replace another model that the repository holds")
    parser.add_argument("--message", default="Upload model with eupe-hf", help="of the commit (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.head and not args.checkpoint:
        parser.error("--head is joined with a raw encoder; it needs --checkpoint FILE")
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", args.repo):
        parser.error(f"--repo must be USER/NAME, got {args.repo!r}")
    return parser, args


def main_config(folder: Path) -> str:
    """Name of the file that says what the model is.

    Raises:
        ValueError: The folder holds no model of this package, or one that is damaged.
    """
    names = [name for name in CONFIGS if (folder / name).is_file()]
    weights = sorted(folder.glob("*model*.safetensors"))
    texts = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*config.json"))
    if not names or not weights or not re.search(r'"model_type":\s*"eupe', texts):
        raise ValueError(
            f"{folder} holds no EUPE model: expected config.json (or adapter_config.json with eupe_config.json) and "
            ".safetensors as save_pretrained writes them; give other layouts with --checkpoint."
        )
    try:
        for path in weights:
            with safe_open(path, "pt"):
                pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut short ({error}); save the model again.") from error
    return names[0]


def new_card(folder: Path, wanted: str | None, repo_id: str) -> ModelCard:
    """The card, with the repository's name in its code and the licence of the weights in its metadata.

    Raises:
        ValueError: There is none, or it is for another model, or it states another licence.
    """
    path = Path(wanted) if wanted else folder / "README.md"
    if wanted in VARIANTS:
        path = CARDS / f"{wanted}.md"
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = variant_config(wanted).to_dict()
        fields = ("model_type", "backbone_type", "hidden_size", "num_hidden_layers", "depths", "hidden_sizes")
        if config.get("architectures") != ["EupeModel"] or any(config.get(key) != shape.get(key) for key in fields):
            raise ValueError(f"The card of {wanted} is for its encoder alone, which this is not; give another --card.")
    if not path.is_file():
        raise ValueError(f"There is no card at {path}; give one with --card FILE, or save the model again.")
    card = ModelCard.load(path)
    for key, value in WEIGHTS_LICENSE.items():
        stated = getattr(card.data, key, None)
        if stated not in (None, value):
            raise ValueError(
                f"{path} states {key}: {stated}, but EUPE's weights and what is made of them are under "
                f"{WEIGHTS_LICENSE['license_name']}; state {key}: {value}, or leave it out and it is added."
            )
        setattr(card.data, key, value)
    card.text = card.text.replace('"PATH"', f'"{repo_id}"')
    return card


def look(api: HfApi, plan: Plan, args: argparse.Namespace, folder: Path, config: str) -> None:
    """See what the repository holds, and complete the plan.

    Raises:
        ValueError: What is there must not be replaced, or cannot be what was asked for.
    """
    try:
        info = api.model_info(args.repo)
    except RepositoryNotFoundError:
        if args.create_pr:
            raise ValueError(f"{args.repo} does not exist: a pull request needs a repository.") from None
        return
    if args.private and not info.private:
        raise ValueError(f"{args.repo} exists and is public: --private is for a new repository; change it on the Hub.")
    if args.revision:
        try:
            info = api.model_info(args.repo, revision=args.revision)
        except RevisionNotFoundError:
            plan.new_branch = True
    plan.parent, plan.present = info.sha, frozenset(file.rfilename for file in info.siblings)
    weights = sorted(name for name in plan.present if WEIGHTS.fullmatch(name))
    if config in plan.present:
        there = json.loads(Path(hf_hub_download(args.repo, config, revision=info.sha)).read_text(encoding="utf-8"))
        difference = _difference(there, json.loads((folder / config).read_text(encoding="utf-8")))
    else:
        difference = f"it has {weights[0]} and no {config}" if weights else None
    if difference and not args.overwrite:
        raise ValueError(f"{args.repo} holds another model: {difference}; give another --repo, or --overwrite.")
    old = [n for n in plan.present if MODEL_FILES.fullmatch(n)] if difference else []
    stale = [n for n in weights if difference or MODEL_FILES.fullmatch(n)]
    plan.deleted = tuple(sorted({*old, *stale} - plan.files.keys()))


def _difference(there: Any, here: Any) -> str | None:
    """The first field in which two configurations differ, in words."""
    for key in sorted({*there, *here} - {*VOLATILE}):
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if (difference := _difference(one, other)) is not None:
                return f"{key}.{difference}"
        elif _unordered(one) != _unordered(other):
            return f"{key} is {json.dumps(one)} there and {json.dumps(other)} here"
    return None


def _unordered(value: Any) -> Any:
    # peft writes sets of names, in any order
    return sorted(value) if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else value


def push(api: HfApi, plan: Plan, args: argparse.Namespace) -> str:
    """Upload as planned, in one commit. Returns its address, or that of the pull request."""
    if plan.parent is None:
        api.create_repo(args.repo, private=args.private)
    if args.revision and (plan.new_branch or plan.parent is None):
        api.create_branch(args.repo, branch=args.revision, revision=plan.parent)
    operations = [CommitOperationAdd(name, content) for name, content in plan.files.items()]
    operations += [CommitOperationDelete(name) for name in plan.deleted]
    done = api.create_commit(
        args.repo,
        operations,
        commit_message=args.message,
        revision=args.revision,
        create_pr=args.create_pr,
        parent_commit=plan.parent,
    )
    return done.pr_url or done.commit_url


def reason(error: Exception, repo_id: str) -> str:
    """What went wrong, in one sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = {
        401: f"The Hub does not know you: log in with `hf auth login`, or set HF_TOKEN, to write to {repo_id}.",
        403: f"Your token may not write to {repo_id}: take one with write access, or another --repo.",
        412: f"{repo_id} was changed by somebody else in the meantime, and is as they left it: look again, then push.",
    }
    if status in told:
        return told[status]
    first = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return f"The Hub did not take it, and the files in {repo_id} are as they were ({first}): try again."


def publish(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path, api: HfApi) -> None:
    """Plan, say what is planned, and with --push do it."""
    config = main_config(folder)
    card = new_card(folder, args.card or args.name, args.repo)
    entries = sorted(path for path in folder.iterdir() if path.name != "README.md")
    files: dict[str, Path | bytes] = {e.name: e for e in entries if e.is_file() and MODEL_FILES.fullmatch(e.name)}
    plan = Plan({"README.md": str(card).encode(), **files}, [e.name for e in entries if e.name not in files])
    look(api, plan, args, folder, config)
    where = f"at {plan.parent[:12]}" if plan.parent else f"new, {'private' if args.private else 'public'}"
    print("\n".join([f"One commit to {args.repo}, {where}:", *plan.lines()]))
    if plan.left_out:
        print(f"Left out, no part of the model: {', '.join(plan.left_out)}.")
    print(f"Published: {push(api, plan, args)}" if args.push else "Nothing was sent: --push does it.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Returns its exit code; with an error that the user can mend it exits with 2."""
    parser, args = parse(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "converted"
        try:
            check_head_options(args.head, args.task, args.layers)
            if args.name:
                folder = fetch(args.name)
            elif args.checkpoint:
                done = convert(args.checkpoint, folder, args.variant, args.head, args.task, args.layers)
                if not done.is_equal:
                    print("\n".join(done.lines()), file=sys.stderr)
                    return 1
                print("\n".join(done.notes))
            publish(parser, args, folder, HfApi())
        except OptionError as error:
            parser.error(str(error))
        except (HTTPError, RuntimeError) as error:  # RuntimeError: huggingface_hub's word for a broken upload
            parser.exit(2, f"{parser.prog}: {reason(error, args.repo)}\n")
        except (OSError, ValueError) as error:
            parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
