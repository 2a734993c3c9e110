import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from biflow.data.npz import write_npz
from biflow.errors import InputError
from biflow.files import (
    CannotWrite,
    check_file_output,
    check_new_folder,
    check_writable,
    delete_folder,
    hold_folder,
    remove_leftovers,
    replace_file,
    replace_folder,
    write_csv,
    write_text,
)
from tests.builders import full_disk


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
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_replacement)
    with pytest.raises(InputError, match="Input/output"), replace_folder(folder) as temporary:
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


def kill_while(code: str, folder: Path) -> None:
    """Run code in another process that kills itself in its middle, where it says KILL."""
    head = "import os, shutil, signal\nfrom pathlib import Path\nfrom biflow.files import *\nos.getpid = lambda: 1\n"
    code = head + textwrap.dedent(code).replace("KILL", "signal.raise_signal(signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL


def entries(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_what_a_killed_process_left_never_blocks_and_is_removed(tmp_path):
    """In a container every process has the id 1."""
    for code in (
        "with replace_file(Path('a.txt')) as t: t.write_text('half'); KILL",
        "with replace_folder(Path('model')) as t: (t / 'w').write_text('half'); KILL",
    ):
        kill_while(code, tmp_path)
    assert len(entries(tmp_path)) == 2
    check_new_folder(tmp_path)
    write_text(tmp_path / "a.txt", "whole")
    with replace_folder(tmp_path / "model") as temporary:
        (temporary / "w").write_text("whole")
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == ["a.txt", "model"]
    assert (tmp_path / "model" / "w").read_text() == "whole"


def test_leftovers_of_a_path_go_when_it_is_written_again_unless_a_process_still_writes_to_them(tmp_path):
    for name in ("a.txt", "a.txt.b"):
        kill_while(f"with replace_file(Path({name!r})) as t: t.write_text('half'); KILL", tmp_path)
    with replace_file(tmp_path / "a.txt") as first:
        first.write_text("first")
        write_text(tmp_path / "a.txt", "second")
        remove_leftovers(tmp_path, "a.txt")
        assert first.exists()
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [each.startswith(".a.txt.b.") for each in entries(tmp_path)] == [True, False]


def test_a_folder_whose_replacement_was_killed_between_two_renames_is_restored(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("kept")
    kill_while(
        """
        rename = Path.rename
        Path.rename = lambda path, to: rename(path, to) if path.name != "new" else KILL
        with replace_folder(Path("model")) as t: (t / "w").write_text("new")
        """,
        tmp_path,
    )
    assert not (tmp_path / "model").exists()
    with replace_folder(tmp_path / "model") as temporary:
        assert (tmp_path / "model" / "mine.txt").read_text() == "kept"
        (temporary / "w").write_text("new")
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == ["model"]
    assert entries(tmp_path / "model") == ["w"]


def test_a_folder_killed_while_it_is_deleted_is_gone(tmp_path):
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state").write_text("old")
    kill_while("shutil.rmtree = lambda *_, **__: KILL\ndelete_folder(Path('step'))", tmp_path)
    assert not (tmp_path / "step").exists()
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == []
    with pytest.raises(CannotWrite, match="No such file"):
        delete_folder(tmp_path / "step")


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    write_text(tmp_path / ("é" * 125), "new")
    assert (tmp_path / ("é" * 125)).read_text() == "new"


WRITERS = {
    "text": lambda path: path.write_text("x" * 10_000),
    "safetensors": lambda path: save_file({"weight": torch.zeros(2000)}, path),
    "torch.save": lambda path: torch.save({"weight": torch.zeros(2000)}, path),
    "png": lambda path: Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(
        path, "PNG"
    ),
    "npz": lambda path: write_npz(path, torch.zeros(99, 3, 9, 9).byte().random_(), torch.zeros(99)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path, kind):
    path = tmp_path / "a"
    path.write_text("old")
    with (
        full_disk(4096),
        pytest.raises(CannotWrite, match=r"Expected to write .*/a; got: .*Free some space"),
        replace_file(path) as temporary,
    ):
        WRITERS[kind](temporary)
    with full_disk(4096), pytest.raises(CannotWrite, match=r"/b; got"), replace_folder(tmp_path / "b") as temporary:
        WRITERS[kind](temporary / "inner")
    assert entries(tmp_path) == ["a"]
    assert path.read_text() == "old"


def test_a_table_on_a_full_disk_is_one_sentence(tmp_path):
    with full_disk(4096), pytest.raises(CannotWrite):
        write_csv(tmp_path / "scores.csv", ["image"], [["x" * 100]] * 100)
    assert entries(tmp_path) == []


def test_faults_that_are_not_of_writing_stay_themselves(tmp_path):
    for fault in (FileNotFoundError(2, "No such file", "/elsewhere"), RuntimeError("shapes"), OSError("no image")):
        with pytest.raises(type(fault)) as found, replace_file(tmp_path / "a"):
            raise fault
        assert found.value is fault


def test_a_folder_is_held_by_one_process_until_that_ends_or_is_killed(tmp_path):
    code = "from biflow.files import *\nwith hold_folder(Path.cwd()): print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=rf"in use by process {other.pid} on \S+ since 20\S+\. Wait"),
            hold_folder(tmp_path),
        ):
            pass
        other.kill()
    mine = f"in use by process {os.getpid()} "
    with hold_folder(tmp_path), pytest.raises(InputError, match=mine), hold_folder(tmp_path):
        pass
    with hold_folder(tmp_path):
        check_new_folder(tmp_path)
