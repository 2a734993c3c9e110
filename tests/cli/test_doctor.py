"""`biflow doctor`: what it says of a machine is so."""

import platform
import sys
from pathlib import Path

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


def install(folder, name, number):
    """The metadata of a package of this version, as pip leaves it."""
    facts = folder / f"{name}-{number}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("torch", "2.9.1+cu128", "CVE-2026-24747"), ("torch", "2.10.0", None), ("torch", "2.13.0+cpu", None),
        ("transformers", "4.57.6", "CVE-2026-4372"), ("transformers", "5.4.0", "CVE-2026-5241"),
        ("transformers", "5.5.0", None), ("transformers", "10.0", None),
    ],
)  # fmt: skip
def test_a_version_with_a_known_fault_is_named_with_its_advisory(tmp_path, monkeypatch, name, number, said):
    install(tmp_path, name, number)
    monkeypatch.syspath_prepend(tmp_path)
    found = [each for each in doctor.advisories() if f" {name} " in each]
    assert bool(found) == bool(said)
    assert not said or said in found[0]


def test_the_required_versions_are_those_without_a_known_fault():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, (first, _) in doctor.ADVISORIES.items():
        assert f'"{name}>={first}"' in text
