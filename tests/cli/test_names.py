"""Names of files and classes that are no plain text."""

import csv
import os

import pytest
from PIL import Image

from biflow.checkpoint import save_model
from biflow.console import say, table, tell
from tests.builders import tiny_model
from tests.data.pictures import noise

STEERING = "\x1b[31m\x07\u202e\udcff"
ESCAPED = r"\x1b[31m\x07\u202e\udcff"


def test_control_characters_do_not_reach_the_terminal(capsys):
    from biflow.console import console

    tell(f"a{STEERING}\nb")
    say(f"c{STEERING}")
    console.print(table("names", [["name", "value"], [STEERING, STEERING]]))
    out, err = capsys.readouterr()
    assert (out.startswith(f"a{ESCAPED}\nb\n"), err) == (True, f"c{ESCAPED}\n")
    assert not {*out} & {*STEERING} - {*ESCAPED}


@pytest.mark.parametrize("command", ["score", "classify"])
def test_files_whose_names_are_no_text_are_listed_escaped(biflow, tmp_path, command):
    save_model(tiny_model(), tmp_path / "model")
    name = os.fsdecode(b"a\xff\x1b[2J.png")
    (tmp_path / "images").mkdir()
    Image.fromarray(noise(4, 4)).save(tmp_path / "images" / name)
    code, out, err = biflow(command, tmp_path / "model", tmp_path / "images", "--out", tmp_path / "x.csv")
    assert (code, err, "\x1b" in out) == (0, "", False)
    with (tmp_path / "x.csv").open(encoding="utf-8") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {r"a\udcff\x1b[2J.png"}


def test_names_are_not_turned_into_pictures(capsys):
    """Rich would replace the names of emoji between colons."""
    tell("data=folder:a: b, :dog:")
    say(":cat:")
    assert capsys.readouterr() == ("data=folder:a: b, :dog:\n", ":cat:\n")
