"""The direction of imports: a file imports from its own folder or a lower row."""

import ast
from pathlib import Path

import biflow

ROOT = Path(biflow.__file__).parent
ROWS = [
    {"errors", "_version", "console", "losses"},
    {"inputs"},
    {"files", "tensors", "config", "distributed", "extras"},
    {"nn", "features", "data"},
    {"models"},
    {"checkpoint", "sampling", "inference", "plan"},
    {"training", "hub"},
    {"pipeline"},
    {"evaluation", "export", "app"},
    {"quickstart"},
    {"cli"},
    {"__main__"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def imported_units(path: Path) -> set[str]:
    """Top-level units of the package (folders, or files at its root) that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
            if node.module == "biflow":  # a public name counts as the unit it lives in
                modules |= {biflow._HOMES.get(alias.name, f"biflow.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    units = {module.split(".")[1] for module in modules if module.startswith("biflow.")}
    return units


def test_files_import_only_from_their_folder_or_a_lower_row():
    faults = []
    for path in ROOT.rglob("*.py"):
        unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue
        for other in imported_units(path):
            if ROW_OF[other] >= ROW_OF[unit] and other != unit:
                faults.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not faults, faults


def test_every_unit_has_a_row():
    units = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert units - {"__init__", "__pycache__", "py.typed", "recipes"} <= ROW_OF.keys()


def test_importing_the_package_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, biflow, biflow.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    for name in biflow.__all__:
        assert getattr(biflow, name) is not None
