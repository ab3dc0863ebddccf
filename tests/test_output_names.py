# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The rule for everything that is written: names, and what may be replaced."""

from pathlib import Path

import pytest

from eupe_hf.staging import check_outputs, output_names, staged_file


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["in/x.jpg", "in/a/x.jpg", "elsewhere/y.tiff"], ["x.png", "a/x.png", "y.png"]),
        (["in/x.jpg", "in/x.png", "in/x-2.png"], ["x.png", "x-2.png", "x-2-2.png"]),
        (["in/x-2.png", "in/x.jpg", "in/x.png"], ["x-2.png", "x.png", "x-3.png"]),
        (["in/X.png", "in/x.png", "in/A/1.png", "in/a/1.png"], ["X.png", "x-2.png", "A/1.png", "a/1-2.png"]),
        (["in/caf\u00e9.png", "in/cafe\u0301.png"], ["caf\u00e9.png", "cafe\u0301-2.png"]),
        (["one/0.png", "two/0.png", "three/0.png"], ["0.png", "0-2.png", "0-3.png"]),
        (["in/v1.5.png", "in/.hidden.png"], ["v1.5.png", ".hidden.png"]),
    ],
)
def test_no_two_outputs_share_a_name(
    files: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    names = output_names(files, ["in", *files], [".png"])
    assert [str(name) for (name,) in names] == expected


def test_many_inputs_of_one_name_take_no_longer_than_others(tmp_path: Path) -> None:
    names = output_names([f"{folder}/x.png" for folder in range(20_000)], [], [".png"])
    assert len({name for (name,) in names}) == 20_000


def test_outputs_that_exist_are_refused_until_asked(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    check_outputs([tmp_path / "new", tmp_path / "empty"])
    for name in ("full", "full/x", "dangling"):
        with pytest.raises(FileExistsError, match=r"already exists: give another output, or --overwrite to replace"):
            check_outputs([tmp_path / "new", tmp_path / name])
        check_outputs([tmp_path / name], overwrite=True)
    with pytest.raises(ValueError, match="is also an input"):
        check_outputs([tmp_path / "full" / ".." / "full"], ["eupe-s", tmp_path / "full"], overwrite=True)


def test_devices_are_not_replaced() -> None:
    with pytest.raises(FileExistsError, match="/dev/null is a device or a pipe"), staged_file("/dev/null"):
        pass
    assert Path("/dev/null").is_char_device()
