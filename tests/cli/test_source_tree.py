"""biflow as a folder of sources: not installed, or copied into another repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import biflow
from biflow.training.provenance import git_revision, package_versions

SOURCE = Path(biflow.__file__).parent.parent


@pytest.fixture
def others(tmp_path):
    """A folder with all installed packages but biflow."""
    folder = tmp_path / "others"
    folder.mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "biflow" not in each.name:
            (folder / each.name).symlink_to(each)
    return folder


def test_versions_are_known_of_a_tree_that_is_not_installed(others, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(others)])
    assert {"huggingface_hub", "numpy", "torch"} <= package_versions().keys()


def test_a_tree_that_is_not_installed_suggests_commands_that_work(others):
    paths = os.pathsep.join(map(str, (SOURCE, others)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONNOUSERSITE": "1", "PATH": "/usr/bin:/bin"}

    def run(command):
        options = {"env": environment, "capture_output": True, "text": True, "shell": True}
        done = subprocess.run(command, check=False, **options)
        return done.returncode, done.stdout, done.stderr

    code, _, err = run(f"'{sys.executable}' -S -m biflow recipes --nothing")
    assert code == 2
    suggested = err.strip().partition(" See ")[2]
    assert suggested.endswith("-m biflow recipes --help")
    code, out, err = run(suggested.replace(" -m ", " -S -m ", 1))
    assert (code, err) == (0, "")
    assert "List the recipes" in out


def commit_all(folder):
    """Make a git repository of a folder; returns its commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize("name", ["biflow", "other", None])
@pytest.mark.parametrize("where", ["src/biflow", "vendor/biflow"])
def test_a_commit_is_named_of_the_repository_of_biflow_alone(tmp_path, monkeypatch, name, where):
    package = tmp_path / where
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(biflow, "__file__", str(package / "__init__.py"))
    if name:
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    commit, own = commit_all(tmp_path), (name, where) == ("biflow", "src/biflow")
    assert git_revision() == (commit if own else None)
    (package / "__init__.py").write_text("changed = True\n")
    assert git_revision() == (f"{commit}+" if own else None)
