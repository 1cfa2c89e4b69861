"""Folders that appear whole, also in the place of a link to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.errors import OutputError
from sfumato.files import atomic_folder


def test_a_link_to_a_folder_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir()
    (theirs / "weights").write_text("theirs")
    link.symlink_to(theirs, target_is_directory=True)
    with pytest.raises(OutputError, match="not empty"), atomic_folder(link):
        pytest.fail("a folder with something in it is not replaced unasked")
    with atomic_folder(link, overwrite=True) as folder:
        (folder / "weights").write_text("ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "theirs"]
    assert not link.is_symlink() and (link / "weights").read_text() == "ours"
    assert (theirs / "weights").read_text() == "theirs"


def test_a_folder_that_fails_leaves_the_link_as_it_was(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir()
    link.symlink_to(theirs, target_is_directory=True)
    with pytest.raises(ZeroDivisionError), atomic_folder(link, overwrite=True):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "theirs"]
    assert link.resolve() == theirs
