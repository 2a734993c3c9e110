import contextlib
import os
from pathlib import Path

import pytest

from biflow.errors import InputError
from biflow.files import check_file_output, check_writable, replace_file, replace_folder


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with replace_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_kept_if_replacing_it_fails(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    rename = Path.rename

    def fail_for_the_replacement(self, target):
        if self.name.endswith(".part"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_replacement)
    with pytest.raises(OSError, match="Input/output"), replace_folder(folder) as temporary:
        (temporary / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replace_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_or_another_kind_is_never_replaced(tmp_path):
    """As root, a rename would replace even a device."""
    pipe, folder, file = tmp_path / "pipe", tmp_path / "folder", tmp_path / "file"
    os.mkfifo(pipe)
    folder.mkdir()
    file.write_text("kept")
    (tmp_path / "link").symlink_to(pipe)
    for path, kind in ((pipe, "device or a pipe"), (tmp_path / "link", "device or a pipe"), (folder, "folder")):
        with pytest.raises(InputError, match=kind), replace_file(path) as temporary:
            temporary.write_text("new")
        with pytest.raises(InputError, match=kind):
            check_file_output(path)
    for path, kind in ((pipe, "device or a pipe"), (file, "file")):
        with pytest.raises(InputError, match=kind), replace_folder(path):
            pass
    assert pipe.is_fifo()
    assert file.read_text() == "kept"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder", "link", "pipe"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replace_folder(tmp_path / "link") as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "1"


@pytest.mark.parametrize("name", ["x" * 300, "file/run"])
def test_an_unwritable_path_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Choose another output path"):
        check_writable(tmp_path / name)


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
