"""What the documents point to exists: files, anchors, functions, commands with their options and settings."""

import ast
import builtins
import re
import shlex
import typing
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
import yaml
from PIL import Image
from pydantic import BaseModel

import biflow
from biflow.cli.main import app
from biflow.config import RunConfig, recipe_names
from biflow.config.explain import settings_page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/biflow"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_PYTHON = [name for name in NAMES if "```python\n" in (ROOT / name).read_text(encoding="utf-8")]
BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$([^\s$](?:[^$\n]*[^\s$])?)\$(?![\w$])")
FORMULA = re.compile(f"{BLOCK.pattern}|{INLINE.pattern}", re.MULTILINE | re.DOTALL)
REFERENCE = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/reference").glob("*.md"))}
MODULES = re.findall(r"^::: (\S+)$", "\n".join(REFERENCE.values()), re.MULTILINE)
PACKAGES = {  # every module of these is in the reference
    *("config", "data", "evaluation", "export", "features", "hub", "inference", "losses", "models", "nn", "sampling"),
    "training",
}
CLI = typer.main.get_command(app)
README_LINES = 120
UNRUN = {  # blocks of Python that tests do not run: page and a call in it, and why
    ("docs/alignment.md", "load_data"): "fits probes to a data set, for seconds",
    ("docs/export.md", "InferenceSession"): "takes an exported file; tests/test_export.py runs it",
    ("docs/fast-sampling.md", "compile"): "needs a GPU; tests/sampling/test_captured.py does it without",
    ("docs/sharing.md", "push_to_hub"): "needs the hub",
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_headings_lead_to_one(page):
    dead = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        if "://" not in link and target.suffix == ".md" and anchor not in anchors(target):
            dead.append(f"{link}#{anchor}")
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_scripts_that_commands_call_exist(page):
    scripts = re.findall(r"python ((?:benchmarks|examples)/\S+\.py)", page.read_text(encoding="utf-8"))
    assert [script for script in scripts if not (ROOT / script).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_those_of_the_command_line(page):
    faults = [f"{line}: {fault}" for line in commands_of(page.read_text(encoding="utf-8")) for fault in check(line)]
    assert not faults


def test_commands_are_found():
    assert len(list(commands_of((ROOT / "README.md").read_text(encoding="utf-8")))) > 10
    (joined,) = commands_of("    biflow train x \\\n        --smoke\n")
    assert joined.split() == ["biflow", "train", "x", "--smoke"]


def test_a_wrong_command_is_found():
    assert check("biflow trian x")
    assert check("biflow train biflow_digits --otu x")
    assert check("biflow train biflow_digits --out x --set model.flow.clap=1")
    assert check("biflow train no_such_recipe --out x")
    assert not check("biflow train biflow_digits --out x --set model.flow.clip=1 --set fit_reverse.adaptive_power=1")


def test_every_row_of_the_mathematics_names_a_function_that_exists():
    rows = re.findall(r"\| `(\S+\.py)`<br>`(\S+)` \|$", (ROOT / "docs/mathematics.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 40
    for file, name in rows:
        found = import_module("biflow." + file.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found), (file, name)


def test_every_row_of_the_mathematics_is_read_by_the_test_above():
    text = (ROOT / "docs/mathematics.md").read_text("utf-8").partition("## Where each is")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| symbol")]
    assert all(re.search(r"\| `\S+\.py`<br>`\S+` \|$", row) for row in rows)


def test_every_source_file_of_the_methods_exists():
    files = re.findall(r"`(\w+/\w+\.py)`", (ROOT / "docs/methods.md").read_text("utf-8"))
    assert len(files) > 30
    assert [file for file in files if not (ROOT / "src/biflow" / file).exists()] == []


def test_every_recipe_has_a_row():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/recipes.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(recipe_names())


def test_every_module_of_the_reference_exists():
    assert len(MODULES) > 50
    for name in MODULES:
        import_module(name)


def test_every_module_is_on_one_page_of_the_reference():
    """Of the packages that are documented; what else there is serves the command line, the app and the quickstart."""
    files = [path for package in PACKAGES for path in (SOURCE / package).glob("[!_]*.py")]
    single = [SOURCE / "errors.py", SOURCE / "pipeline.py", SOURCE / "checkpoint.py"]
    assert sorted(MODULES) == sorted(module_of(path) for path in [*files, *single])


def test_every_package_is_documented_or_internal():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages - PACKAGES == {"app", "cli", "plan", "quickstart"}


def test_every_page_of_the_reference_is_linked_from_the_first():
    linked = set(re.findall(r"\]\((\w+)\.md\)", REFERENCE["index"]))
    assert linked == REFERENCE.keys() - {"index"}


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_hides_no_public_name(module):
    """A page shows every class, function and method of its modules that no filter hides; these need a docstring."""
    options = options_of_the_reference()
    assert options["show_if_no_docstring"]
    hidden = [pattern.removeprefix("!") for pattern in options["filters"]]
    assert len(hidden) == sum(pattern.startswith("!") for pattern in options["filters"])
    own = [each for each in vars(import_module(module)).values() if getattr(each, "__module__", None) == module]
    public = [each for each in own if callable(each) and not getattr(each, "__name__", "_").startswith("_")]
    for each in public:
        members = {name: value for name, value in vars(each).items() if callable(value) or isinstance(value, property)}
        shown = [name for name in members if not name.startswith("_") or name == "__call__"]
        for name in [each.__name__, *shown] if isinstance(each, type) else [each.__name__]:
            assert not any(re.search(pattern, name) for pattern in hidden), name


def test_every_public_method_of_the_pipeline_is_in_the_reference():
    """The page shows the class whole, with what has a docstring, and nothing that it inherits."""
    assert "biflow.pipeline" in re.findall(r"^::: (\S+)$", REFERENCE["pipeline"], re.MULTILINE)
    public = {name for kind in biflow.Pipeline.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
    assert {"sample", "draw", "inpaint", "from_recipe", "push_to_hub", "class_names"} <= public
    hidden = [pattern.removeprefix("!") for pattern in options_of_the_reference()["filters"]]
    for name in [*public, "__call__"]:
        assert name in vars(biflow.Pipeline)
        assert getattr(biflow.Pipeline, name).__doc__, name
        assert not any(re.search(pattern, name) for pattern in hidden), name


@pytest.mark.parametrize("page", REFERENCE)
def test_classes_that_a_page_of_the_reference_mentions_exist(page):
    known = set(dir(builtins)).union(*(vars(import_module(module)) for module in MODULES))
    assert set(re.findall(r"`([A-Z][a-z]\w+)[`(]", REFERENCE[page])) <= known


def test_no_page_of_the_reference_leaves_out_members():
    assert not re.search(r"^ +(members|filters):", "".join(REFERENCE.values()), re.MULTILINE)
    assert "members" not in options_of_the_reference()


@pytest.mark.parametrize("name", sorted(set(biflow.__all__) - {"__version__"}))
def test_every_public_name_is_in_the_reference(name):
    """In the table of names, with a link to the entry on the page of its module."""
    home = getattr(biflow, name).__module__
    assert home in MODULES
    assert f"[`{name}`][{home}.{name}]" in REFERENCE["index"]


def test_fields_are_in_the_reference(griffe_package):
    """Of config classes, dataclasses and named tuples, with their types and what is said of them."""
    for module in MODULES:
        for each in vars(import_module(module)).values():
            if not isinstance(each, type) or each.__module__ != module or each.__name__.startswith("_"):
                continue
            known = getattr(each, "model_fields", None) or getattr(each, "__dataclass_fields__", None)
            names = set(known or getattr(each, "_fields", ()))
            own = {name for name in names & each.__annotations__.keys() if not name.startswith("_")}
            sections = griffe_package[f"{module}.{each.__name__}".removeprefix("biflow.")].docstring.parsed
            listed = {field.name: field for part in sections[1:] for field in part.value}
            assert own <= listed.keys(), each
            assert all(listed[name].annotation is not None for name in own), each
            if isinstance(each, type) and issubclass(each, BaseModel):
                described = {name for name in own if each.model_fields[name].description}
                assert all(listed[name].description for name in described), each


def test_comments_constants_and_examples_are_in_the_reference(griffe_package):
    fields = griffe_package["sampling.result.SamplerOutput"].docstring.parsed[1].value
    assert fields[0].description.startswith("(B, T, D)")
    members = griffe_package["sampling.jacobi"].members
    assert not [name for name, member in members.items() if name.isupper() and not member.is_alias]
    assert str(griffe_package["sampling.jacobi.invert_by_jacobi"].parameters["tolerance"].default) == "0.0001"
    assert "```pycon\n>>> " in griffe_package["pipeline.Pipeline.sample"].docstring.value


@pytest.fixture(scope="module")
def griffe_package():
    """The package as mkdocstrings reads it."""
    griffe = pytest.importorskip("griffe", reason="needs the extra 'docs'")
    extensions = griffe.load_extensions("dataclasses", str(ROOT / "docs/hooks/docstrings.py"))
    return griffe.load("biflow", search_paths=[SOURCE.parent], extensions=extensions, allow_inspection=False)


def test_the_page_of_settings_is_that_of_the_code():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page()


def test_every_page_of_the_site_exists_and_is_in_the_navigation():
    """Except pages that others link to, which are named; the page of figures is generated before the site is built."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = set(pages_in(config["nav"]))
    assert "results/figures.html" in shown
    assert "docs/results/figures.html" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert shown - pages == {"results/figures.html"}
    assert all(page.startswith(tuple(config["not_in_nav"].split())) for page in pages - shown)


@pytest.mark.parametrize("page", NAMES)
def test_formulas_can_be_shown_without_a_script(page):
    pytest.importorskip("latex2mathml", reason="needs the extra 'docs'")
    spec = spec_from_file_location("mathml", ROOT / "docs/hooks/mathml.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(hook := module_from_spec(spec))
    for formula in formulas_of(page):
        assert hook.to_mathml(formula).startswith("<math ")
    with pytest.raises(ValueError, match="alhpa"):
        hook.to_mathml(r"\alhpa")


@pytest.mark.parametrize("page", NAMES)
def test_formulas_are_read_alike_by_github_and_the_site(page):
    """Every $ has its pair; nothing that Markdown takes for an escape, or for the end of a cell of a table."""
    formulas = list(formulas_of(page))
    text = re.sub(r"`[^`\n]*`", "", without_code((ROOT / page).read_text(encoding="utf-8")))
    assert "$" not in FORMULA.sub("", text)
    for formula in formulas:
        assert not re.search(r"\\[^a-zA-Z]", formula), formula
        assert formula.count("{") == formula.count("}"), formula
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert not [row for row in rows if any(re.search(r"\\?\|", formula[1]) for formula in INLINE.finditer(row))]


def test_formulas_are_found():
    assert len(list(formulas_of("docs/mathematics.md"))) > 100
    assert sum(bool(list(formulas_of(f"docs/reference/{page}.md"))) for page in REFERENCE) > 5


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the pages' Python takes: models of the digits' size, not trained, and pictures."""
    folder = tmp_path_factory.mktemp("workplace")
    layers = "{blocks: 1, layers: 1, width: 16, head_width: 8}", "{layers: 1, width: 16, head_width: 8}"
    pipe = biflow.Pipeline.from_recipe("biflow_digits", [f"model.flow={layers[0]}", f"model.reverse={layers[1]}"])
    for run in ("quickstart", "mine", "aligned"):
        pipe.save_pretrained(folder / "runs" / run / "model")
    pipe.sample([3])[0].save(folder / "three.png")
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 4, 8, 8))
    mask.save(folder / "mask.png")
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page, workplace, monkeypatch):
    """A page's blocks in their order, in one namespace; of those that are not run, what they import."""
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {}
    for block in python_of(page):
        tree = ast.parse(block)
        if any(where == page and call in block for where, call in UNRUN):
            tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
        exec(compile(tree, page, "exec"), names)


@pytest.mark.parametrize(("page", "call"), UNRUN, ids=[page for page, _ in UNRUN])
def test_python_that_is_not_run_is_there(page, call):
    assert sum(call in block for block in python_of(page)) == 1


def test_python_on_pages_is_found():
    assert {"README.md", "docs/editing.md", "docs/one-pass.md", "docs/export.md"} <= set(WITH_PYTHON)
    assert len(list(python_of("docs/alignment.md"))) == 2


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_citation_names_the_package_and_its_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    papers = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    assert {"arXiv:2412.06329", "arXiv:2511.22345", "arXiv:2512.10953"} <= papers


def module_of(path: Path) -> str:
    """The name of the module in a source file."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


def options_of_the_reference() -> dict[str, typing.Any]:
    """How mkdocstrings shows modules."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (found,) = [plugin["mkdocstrings"] for plugin in config["plugins"] if isinstance(plugin, dict)]
    options: dict[str, typing.Any] = found["handlers"]["python"]["options"]
    return options


def pages_in(entry: typing.Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages_in(part)


def without_code(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(```.*?^```|    .*?)$", "", text, flags=re.MULTILINE | re.DOTALL)


def formulas_of(page: str) -> Iterator[str]:
    """The LaTeX of the formulas of a page."""
    text = re.sub(r"`[^`\n]*`", "", without_code((ROOT / page).read_text(encoding="utf-8")))
    for found in FORMULA.finditer(text):
        yield found[1] or found[2]


def python_of(page: str) -> Iterator[str]:
    """Blocks of Python on a page."""
    yield from re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands_of(text: str) -> Iterator[str]:
    """Lines of code that call the command line, continued lines joined; also those in backticks."""
    text = text.replace("\\\n", " ")
    yield from re.findall(r"^(?: {4}|\$ )?((?:biflow|torchrun .* -m biflow) .+)$", text, re.MULTILINE)
    yield from re.findall(r"`(biflow [a-z][^`\n]+)`", text)


def check(line: str) -> list[str]:
    """What is wrong with a command; a synopsis may leave words open in capitals, and put brackets around options."""
    line = line.partition("-m biflow ")[2] if line.startswith("torchrun") else line.removeprefix("biflow ")
    words = shlex.split(re.sub(r"[\[\]](?!\w+,|\{)", " ", line.replace("[{", "{").replace("}]", "}")), comments=True)
    command, here = CLI, []
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return [] if words[0].startswith(("-", ".")) else [f"no command {' '.join([*here, words[0]])}"]
        here.append(words[0])
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("-")} | {"--help"}
    faults = [f"no option {word}" for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    if here in (["train"], ["plan"]):
        if words and re.fullmatch(r"[a-z]\w+", words[0]) and words[0] not in recipe_names():
            faults.append(f"no recipe {words[0]}")
        set_values = [value for option, value in pairwise(words) if option == "--set"]
        faults += [f"no setting {value}" for value in set_values if not is_setting(value.partition("=")[0])]
    return faults


def is_setting(path: str) -> bool:
    """Whether a dotted path names a setting of a run."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in path.removesuffix("...").split("."):
        if part in {"key", "sub"} or not part:  # a placeholder
            return True
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:
            return False
        models = [model for field in fields for model in models_in(field.annotation)]
    return True


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]
