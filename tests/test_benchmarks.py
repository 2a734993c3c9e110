"""Benchmarks: operation counts, verdicts, the papers' commands, and the pages rendered from JSON."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from biflow.config import FlowConfig, ReverseConfig, load_recipe
from biflow.data.datasets import ImageSet
from biflow.errors import InputError
from biflow.models.forward_flow import ForwardFlow
from biflow.sampling.guidance import parse_guidance
from biflow.sampling.samplers import find_sampler
from tests.builders import tiny_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
SHARED = (
    "charts",
    "claims_page",
    "machine",
    "mutations",
    "panels_real",
    "runs",
    "seeds",
    "studies",
)  # imported by the others; no commands
RESULTS = BENCHMARKS.parent / "docs" / "results"
PAGES = [  # page, script, function that renders it
    *((name, name, "render") for name in ("certify", "editing", "export", "faults", "outliers")),
    ("plan", "memory", "render"),
    ("fashion_mnist", "showcase", "render"),
    ("speed/batches", "batches", "render"),
    ("speed/contention", "contention", "render"),
    *((f"speed/inverse{which}", "inverse", "render") for which in ("", "_digits_p1", "_quickstart", "_refine")),
    ("speed/inverse_shape", "inverse", "render_shapes"),
    ("speed/latency_biflow_digits", "latency", "render"),
    ("speed/training_step_compiled", "training_step", "render"),
]
PAPER_TABLES = {
    "BiFlow": [
        "Strategies for learning the inverse", "Denoising", "Norm control", "Guidance", "Perceptual distances",
        "Scaling", "Comparison", "Speed",
    ],
    "FlowBack": ["Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 7", "Table 8", "Table 9", "Convergence"],
}  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    """A function that imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in SHARED])
def test_every_benchmark_is_importable_and_prints_its_help(load, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


@pytest.fixture
def training_step(load):
    return load("training_step")


@pytest.fixture
def ablations(load):
    return load("ablations")


@pytest.mark.parametrize(
    "changes", [{"layers": 2}, {"layers": (1, 3, 1)}, {"mlp": "swiglu", "mlp_ratio": 2.5}, {"volume_preserving": True}]
)
def test_operation_counts_match_torch_with_causal_attention_at_half(training_step, changes):
    config = tiny_config(flow=FlowConfig(**{"blocks": 3, "width": 16, "head_width": 8, **changes}))
    flow = ForwardFlow(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        flow(torch.randn(1, 4, 4), torch.zeros(1, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "bmm" in str(name))
    expected = counter.get_total_flops() - attention / 2
    assert training_step.forward_operations(config) == expected


@pytest.mark.parametrize(
    ("better", "worse", "outcome"),
    [
        ([5.0, 6.0, 5.5], [8.0, 8.5, 9.0], "holds"),
        ([8.0, 8.5, 9.0], [5.0, 6.0, 5.5], "does not hold"),
        ([5.0, 6.0, 5.5], [7.0, 7.1, 9.0], "too close to tell"),  # in every seed, but the spread is as large
        ([5.0, 6.0, 7.0], [6.0, 5.0, 8.0], "too close to tell"),  # not in every seed
        ([5.0, 5.0, 5.0], [5.1, 5.1, 9.0], "too close to tell"),  # one seed makes the difference
        ([5.0], [9.0], "too close to tell"),  # one seed has no spread
    ],
)
def test_a_claim_holds_if_every_seed_agrees_beyond_the_spread(ablations, better, worse, outcome):
    claim = ablations.Claim("Table", "a", "b", "A beats b")
    scores = {("Table", name): [{"frechet_distance": x} for x in xs] for name, xs in (("a", better), ("b", worse))}
    assert f"**{outcome}**" in ablations.verdict(claim, scores)


def test_every_row_of_the_ablations_can_be_trained_and_every_claim_names_rows(ablations):
    work = ablations.Work("digits", 10, 10, Path("runs"))
    rows = {(table, row.name): row for table, rows in ablations.TABLES.items() for row in rows}
    for row in rows.values():
        flow, overrides = ablations.TRAININGS[row.training]
        config = ablations.settings(work, 0, ["stage=reverse", "flow_from=x", *ablations.FLOWS[flow], *overrides])
        assert ReverseConfig(**{**config.model.reverse.model_dump(), **dict(row.sampled_as)})
    for claim in ablations.CLAIMS:
        assert {(claim.table, claim.better), (claim.table, claim.worse)} <= rows.keys()


def test_every_row_of_the_claims_is_trained_and_every_claim_names_rows(load):
    claims = load("claims")
    rows = {(table, row.name): row for table, rows in claims.TABLES.items() for row in rows}
    assert {row.training for row in rows.values()} <= claims.TRAININGS.keys()
    for claim in claims.CLAIMS:
        assert {(claim.table, claim.better), (claim.table, claim.worse)} <= rows.keys()
    work = claims.Work("digits", load("studies").Study("Digits", "biflow_digits"), 10, Path("runs"))
    paths = {claims.row_path(work, 0, row): row for row in rows.values()}
    named = ("name", "paper")  # rows that differ in anything else have files of their own
    assert len(paths) == len({tuple((asdict(row) | dict.fromkeys(named)).items()) for row in rows.values()})
    for name in (*claims.FLOWS, *claims.ALIGNED):
        assert claims.flow_config(work, 0, name).stage == "flow"
    for name, training in claims.TRAININGS.items():
        config = claims.reverse_settings(work, 0, name, Path("flow"))
        assert (config.fit_finish is not None) == (training.finish > 0)


def test_every_variant_of_reverse_training_has_settings(load):
    convergence, claims = load("convergence"), load("claims")
    work = claims.Work("digits", load("studies").Study("Digits", "biflow_digits"), 10, Path("runs"))
    base = convergence.settings(work, 0, [])
    for name, variant in convergence.VARIANTS.items():
        config = convergence.settings(work, 0, [*claims.FLOWS[variant.flow], *variant.overrides])
        assert config != base or name in {convergence.BASE, "batches of 64"}, name


def test_images_of_a_study_are_shuffled_so_that_the_first_ones_represent_all_classes(load):
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    found = load("studies").in_memory(ImageSet(images, torch.arange(100) // 10, tuple("abcdefghij")))
    assert len(set(found.labels[:40].tolist())) > 7
    assert torch.equal(found.labels, found.images.flatten().long() // 10)


def test_kept_numbers_are_computed_again_if_they_are_of_something_else(load, tmp_path):
    kept, made = load("studies").kept, []

    def compute():
        made.append(1)
        return {"distance": float(len(made))}

    path = tmp_path / "folder" / "scores.json"
    assert [kept(path, {"size": size}, compute)["distance"] for size in ((1, 2), (1, 2), (3, 4))] == [1.0, 1.0, 2.0]


def test_resampling_decides_by_the_observed_gain(load):
    seeds, generator = load("seeds"), torch.Generator().manual_seed(0)
    low, high = torch.randn(500, generator=generator), torch.randn(500, generator=generator) + 1

    def mean(values):
        return values.mean().item()

    found = seeds.resample(low, high, mean)
    assert found.outcome == "holds"
    assert found.low < found.gain < found.high
    assert found.gain == pytest.approx(mean(high) - mean(low))
    assert found.high - found.low == pytest.approx(2 * 1.96 * (2 / 500) ** 0.5, rel=0.15)
    assert seeds.resample(high, low, mean).outcome == "does not hold"
    assert seeds.resample(low, low + 1e-3 * torch.randn(500, generator=generator), mean).outcome == "too close to tell"


def test_the_share_of_steps_to_the_plain_flows_figures(load):
    def curve(*distances):
        lines = enumerate(distances, 1)
        return [{"step": step, "accuracy": 1 / distance, "frechet_distance": distance} for step, distance in lines]

    curves = {"bounded": curve(9, 7, 5, 4), "reverse": curve(6, 3, 2, 1), "detach": curve(9, 8, 7, 6)}
    reach = load("claims").reach
    assert reach(curves, "bounded") == {"accuracy": 1.0, "frechet_distance": 1.0}
    assert reach(curves, "reverse") == {"accuracy": 0.5, "frechet_distance": 0.5}
    assert reach(curves, "detach") == {"accuracy": None, "frechet_distance": None}


@pytest.mark.parametrize("count", [1, 4, 8, 200])
def test_losses_of_stages_of_any_length_are_reported(load, tmp_path, count):
    lines = [{"stage": "flow", "step": step, "nats_per_dim": float(step)} for step in range(1, count + 1)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"stage": "reverse", "step": 1, "mse": None}])
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    found = load("showcase").losses(tmp_path)
    assert found.keys() == {"flow"}
    assert list(found["flow"]) == ["10%", "25%", "50%", "100%"]
    assert found["flow"]["100%"] == pytest.approx(count - (max(1, round(count / 10)) - 1) / 2)
    assert sorted(found["flow"].values()) == list(found["flow"].values())


def options(words, name):
    """The values of an option that may be repeated."""
    return [value for key, value in pairwise(words) if key == name]


@pytest.fixture
def tables(load):
    return load("tables")


@pytest.fixture
def paper(tables):
    return tables.read_tables()


@pytest.fixture
def rows(paper):
    return [(section, row) for section in paper.sections for row in section.rows]


def test_every_table_of_the_papers_has_a_section(paper):
    for name, titles in PAPER_TABLES.items():
        assert [each.title.split(",")[0] for each in paper.sections if each.paper == name] == titles


def test_every_training_command_of_the_papers_rows_has_a_recipe_and_valid_settings(tables, paper, rows):
    first = [tables.wrapped(paper.filled(text)) for section in paper.sections for text in section.first]
    trainings = [line for section, row in rows for line in tables.commands(paper, section, row)[:1]] + first
    for words in map(shlex.split, trainings):
        if "train" in words:
            config = load_recipe(words[words.index("train") + 1], options(words, "--set"))
            assert config.flow_from is None or config.flow_from.startswith("runs/tables/")
        else:
            assert (BENCHMARKS.parent / words[1]).exists()
            assert load_recipe(*options(words, "--recipe"))


def test_every_evaluation_command_of_the_papers_rows_names_an_existing_sampler(tables, paper, rows):
    lines = [shlex.split(line) for section, row in rows for line in tables.commands(paper, section, row)[1:]]
    assert len(lines) > 40
    for words in lines:
        assert words[:2] == ["biflow", "evaluate"]
        find_sampler(*options(words, "--method"))
        for guidance in options(words, "--guidance"):
            parse_guidance(guidance)
        assert len(options(words, "--guidance") + options(words, "--sweep")) == 1


def test_the_flow_of_every_row_is_trained_by_an_earlier_row_and_no_folder_is_used_twice(tables, paper):
    trained = {}
    for section in paper.sections:
        of_rows = [line for row in section.rows for line in tables.commands(paper, section, row)[:1]]
        for line in [*map(paper.filled, section.first), *of_rows]:
            words = shlex.split(line)
            for out in options(words, "--out"):
                assert trained.setdefault(out, words[words.index("train") :]) == words[words.index("train") :]
            sources = [each.partition("=")[2] for each in options(words, "--set") if each.startswith("flow_from=")]
            assert all(source.removesuffix("/model") in trained for source in sources)


def test_every_row_has_one_number_per_column(rows):
    assert [row.name for section, row in rows if row.numbers and len(row.numbers) != len(section.columns)] == []


def test_a_wrapped_command_is_the_same_command(tables, paper, rows):
    for section, row in rows:
        for line in tables.commands(paper, section, row):
            assert shlex.split(tables.wrapped(line).replace("\\\n", "")) == shlex.split(line)


def read(name):
    """A page's text and its numbers."""
    numbers = RESULTS / f"{name}.json"
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    return text, json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else None


def test_the_page_of_tables_is_what_its_script_renders(tables, paper):
    written, _ = read("tables")
    assert written == tables.render(paper, tables.read_results(RESULTS))


def test_the_page_of_ablations_is_what_its_script_renders(ablations):
    written, found = read("ablations")
    scores = {(row["table"], row["row"]): row["seeds"] for row in found["rows"]}
    work = ablations.Work(found["data"], found["steps"], found["samples"], Path("runs"))
    assert written == ablations.render(scores, work, found["seeds"], found["real"])


def test_the_page_of_alignment_is_what_its_script_renders(load):
    repa, (written, found) = load("repa"), read("repa")
    work = repa.Work(found["data"], found["steps"], found["samples"], found["every"], Path("runs"))
    assert written == repa.render(work, len(found["scores"]["none"]), found)


@pytest.mark.parametrize(("page", "script", "function"), PAGES, ids=[page for page, *_ in PAGES])
def test_other_pages_are_what_their_scripts_render(load, page, script, function):
    written, found = read(page)
    assert written == getattr(load(script), function)(found)


def test_the_page_of_a_comparison_is_what_its_script_renders(load):
    reports = json.loads((RESULTS / "seed" / "reports.json").read_text(encoding="utf-8"))
    assert (RESULTS / "seed" / "table.md").read_text(encoding="utf-8") == load("compare").render("seed", reports)


def test_every_page_with_numbers_is_compared_with_them():
    pages = {path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.md")}
    with_numbers = {page for page in pages if (RESULTS / f"{page}.json").exists()}
    assert with_numbers == {page for page, *_ in PAGES} | {"ablations", "repa"}


def test_one_seed_is_never_significant(tables):
    assert "too close to tell" in tables.best_guided(tables.read_results(RESULTS))


@pytest.fixture
def report(load):
    return load("report")


def test_the_page_of_figures_names_every_measurement_and_is_self_contained(report):
    page = report.render(RESULTS)
    assert [path for path in RESULTS.rglob("*.json") if path.relative_to(RESULTS).as_posix() not in page] == []
    assert "More files" not in page
    assert "<script" not in page
    assert 'src="' not in page
    assert report.render(RESULTS) == page


def test_the_page_of_figures_is_written_to_a_file(report, monkeypatch, tmp_path):
    shutil.copy(RESULTS / "faults.json", tmp_path)
    out = tmp_path / "site" / "figures.html"
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path), "--out", str(out)])
    report.main()
    assert out.read_text(encoding="utf-8") == report.render(tmp_path)


def test_the_page_of_figures_lists_files_of_unknown_kinds(report, tmp_path):
    shutil.copy(RESULTS / "faults.json", tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "kind.json").write_text("[1, 2]")
    (tmp_path / "plan.json").write_text('{"another": "form"}')
    page = report.render(tmp_path)
    more = page[page.index("More files") :]
    assert "new/kind.json" in more
    assert "plan.json" in more
    assert "faults.json" not in more


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "push --preview", "data encode", "evaluate"])
def test_a_command_killed_anywhere_ends_as_an_undisturbed_one_when_it_runs_again(load, tmp_path, name):
    kills = load("kills")
    found = kills.kill_everywhere(kills.make_commands(tmp_path)[name], tmp_path, every=7)
    assert found["kills"] > 3
    assert found["faults"] == []


def run_script(name, *words):
    """Run a benchmark in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "extras"),
    [
        ("claims", ["--steps", 4], []),
        ("convergence", ["--steps", 4, "--flow-steps", 4, "--seeds", 2, "--only", "no moving average"], []),
        ("likelihood", ["--minutes", 0.02], ["zuko", "normflows"]),
    ],
)
def test_real_images_are_trained_on_scored_and_resumed(load, tmp_path, name, words, extras):
    for extra in ("efficientnet_lite_pytorch", *extras):
        pytest.importorskip(extra)
    size = "--images" if name == "likelihood" else "--samples"
    words = [*words, "--data", "digits", size, 40, "--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    page = tmp_path / "out" / f"{name}_digits.md"
    run_script(name, *words)
    first = page.read_text(encoding="utf-8")
    kept = [path for path in (tmp_path / "runs").rglob("*.json") if path.read_text().startswith('{"of":')]
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    run_script(name, *words)
    assert page.read_text(encoding="utf-8") == first
    assert [path.stat().st_mtime_ns for path in kept] == times
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert load("claims_page" if name == "claims" else name).render(found) == first


@pytest.mark.slow
def test_a_showcase_measures_and_draws_a_run(load, biflow, monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    studies, showcase = load("studies"), load("showcase")
    short = tuple(f"fit_{stage}.{key}" for stage in ("flow", "reverse") for key in ("steps=4", "log_every=1"))
    monkeypatch.setitem(studies.STUDIES, "digits", studies.STUDIES["digits"]._replace(overrides=short))
    run = tmp_path / "run"
    assert biflow("train", "biflow_digits", "--out", run, *(f"--set={each}" for each in short))[0] == 0
    words = [run, "--data", "digits", "--samples", 40, "--judge-steps", 4]
    words = [str(word) for word in [*words, "--runs", tmp_path / "runs", "--out", tmp_path / "out"]]
    showcase.main(words)
    found = json.loads((tmp_path / "out" / "digits.json").read_text(encoding="utf-8"))
    assert showcase.render(found) == (tmp_path / "out" / "digits.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / "out" / "digits.png") as picture:
        assert picture.width > 1000
    monkeypatch.setitem(studies.STUDIES, "digits", studies.STUDIES["digits"]._replace(overrides=short[:2]))
    with pytest.raises(InputError, match="Train it with the study's recipe"):
        showcase.main(words)
