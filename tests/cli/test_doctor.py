"""`biflow doctor`: what it says of a machine is so."""

import platform
import sys

import pytest
import torch

from biflow import __version__
from biflow.cli import doctor
from biflow.cli import main as cli


@pytest.fixture
def few(monkeypatch):
    """Not all of the packages, whose import takes long."""
    monkeypatch.setattr(doctor, "TRIED", ("torchvision",))


@pytest.mark.usefixtures("few")
def test_it_says_what_is_here(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["biflow", "doctor"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert not stop.value.code
    assert __version__ in out
    assert platform.python_version() in out
    assert torch.__version__ in out


def test_an_extra_that_lacks_is_named_with_its_purpose(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "none", ("nothing at all", ("no_such_package",)))
    assert ["none", "nothing at all", "missing: no_such_package"] in doctor.extra_rows()
    assert "none" in doctor.missing_extras()
    assert "quickstart" not in doctor.missing_extras()


@pytest.mark.usefixtures("few")
def test_a_package_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch):
    assert doctor.faults() == []
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    facts = tmp_path / "torchvision-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = doctor.faults()
    assert "torchvision::nms does not exist" in fault
    assert "pip uninstall torchvision" in fault
