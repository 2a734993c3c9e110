"""Files that others wrote, at the door."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from biflow.config.base import parse_values
from biflow.config.recipes import load_recipe
from biflow.data.npz import read_samples, write_npz
from biflow.errors import InputError
from biflow.features.judge import load_judge
from biflow.inputs import MOST_BYTES, brief_repr, open_regular, read_json, read_text
from biflow.tensors import file_checksum
from biflow.training import checkpoints


@pytest.fixture(params=["pipe", "device", "folder"])
def odd(request):
    """Makes something else than a file at a path."""

    def make(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path

    return make


def test_only_regular_files_are_read(odd, tmp_path):
    path = odd(tmp_path / "x.json")
    for read in (open_regular, read_text, file_checksum):
        with pytest.raises(OSError, match="it is a"):
            read(path)
    with pytest.raises(InputError, match=r"Expected JSON in .*x\.json; cannot read it \(it is a .*\)\. Repair it\.$"):
        read_json(path, "Repair it.")


def test_no_reader_waits_for_a_pipe_or_reads_a_device(odd, tmp_path):
    for read in (lambda: load_recipe(str(odd(tmp_path / "x.yaml"))), lambda: read_samples(odd(tmp_path / "x.npz"))):
        with pytest.raises(InputError):
            read()
    odd(tmp_path / "judge" / "judge.json")
    with pytest.raises(InputError):
        load_judge(tmp_path / "judge")
    for name in ("manifest.json", "state.pt"):
        checkpoints.save(tmp_path / name, {}, step=1, metrics={})
        odd(tmp_path / name / "step_00000001" / name)
        with pytest.raises(checkpoints.Damaged, match=rf"{name} cannot be read \(it is a"):
            checkpoints.read(tmp_path / name / "step_00000001")


def test_a_flipped_bit_of_samples_is_never_other_samples(tmp_path):
    """Nor of the name of the labels, without which they would be absent."""
    pixels, labels = torch.arange(192).view(4, 3, 4, 4).to(torch.uint8), torch.arange(4)
    write_npz(tmp_path / "x.npz", pixels, labels)
    whole = (tmp_path / "x.npz").read_bytes()
    for at in range(0, 8 * len(whole), 19):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        (tmp_path / "x.npz").write_bytes(data)
        with suppress(InputError):
            found = read_samples(tmp_path / "x.npz")
            assert torch.equal(found.pixels, pixels)
            assert torch.equal(found.labels, labels)


def test_texts_are_bounded_and_in_utf_8(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "latin")
    (tmp_path / "full").write_text("x" * 8)
    assert read_text(tmp_path / "full", most=8) == "x" * 8
    with pytest.raises(OSError, match="more than"):
        read_text(tmp_path / "full", most=7)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="more than 16 MiB"):
        read_json(tmp_path / "sparse", "Repair it.")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "a: " * 5000, "a: " + "9" * 5000, "a: 1\nb", "\x00",
        "a: !!python/object/apply:os.system [ls]", "a: &a {b: 1}\nc:\n  <<: *a", "? [a]\n: b", "a: 1\na: 2", "x" * 3000,
    ],
)  # fmt: skip
def test_yaml_that_nobody_would_write_is_one_short_sentence(text):
    with pytest.raises(InputError) as caught:
        parse_values(text, "a recipe")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_fault_of_nested_aliases_is_told_without_writing_them_out(tmp_path):
    """Eight to the power of twelve elements, in 500 bytes; in a process of its own, with 2 GiB."""
    inner = [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 8)}]" for i in range(12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["reading:", *inner, "data: *a11", ""]))
    code = (
        "import resource, sys; from biflow.config.recipes import load_recipe; from biflow.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "try: load_recipe(sys.argv[1])\n"
        "except InputError as error: sys.exit(0 if len(str(error)) < 2000 else 3)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "bomb.yaml"], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("value", ["x" * 10**6, [["x" * 99] * 99] * 99, {i: i for i in range(999)}, "\x1b[2J\n"])
def test_values_are_shown_briefly(value):
    assert len(brief_repr(value)) <= 120
    assert brief_repr(value).isprintable()


def test_a_manifest_of_nested_lists_is_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(checkpoints.Damaged, match="has changed"):
        checkpoints.read_manifest(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(checkpoints.Damaged, match="has changed"):
        checkpoints.read_manifest(tmp_path / "manifest.json")
