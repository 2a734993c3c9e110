import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from biflow.cli.main import summary_tables
from biflow.pipeline import Pipeline
from biflow.quickstart.run import make_plan, run_quickstart
from tests.builders import read_npz


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One smoke-sized quickstart for all tests: its folder, its report, and its output."""
    out, printed = tmp_path_factory.mktemp("quickstart") / "run", io.StringIO()
    report = run_quickstart(out, make_plan(small=True), resume=False, console=Console(file=printed, width=100))
    return out, report, printed.getvalue()


def test_all_documented_files_are_written(finished):
    out, _, _ = finished
    names = {path.name for path in out.iterdir()}
    assert {"model", "report.json", "report.html", "samples_exact.npz", "samples_reverse.npz"} <= names
    assert not [name for name in names if name.endswith(".part")]


def test_report_has_all_documented_numbers(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    assert report["total_seconds"] > 0
    assert {"device", "threads", "torch"} <= report["machine"].keys()
    assert (report["data"]["train_images"], report["data"]["test_images"]) == (1437, 360)
    flow = {"parameters", "train_seconds", "test_bits_per_dim_of_noisy_data", "round_trip_error_float64"}
    assert flow <= report["flow"].keys()
    assert {"parameters", "train_seconds", "test_reconstruction_mse"} <= report["reverse"].keys()
    scores = {"class_accuracy", "frechet_distance", "nearer_than_real_share", "spread_ratio"}
    for measured in (report["samples"]["exact"], report["samples"]["reverse"], report["real"]):
        assert scores <= measured.keys()
    for batch in ("1", "256"):
        times = report["speed"]["milliseconds_per_image_by_batch_size"][batch]
        assert {"exact_guided", "exact", "reverse_guided", "reverse", "ratio_guided"} == times.keys()
        assert all(value > 0 for value in times.values())
    assert report["flow"]["round_trip_error_float64"] < 1e-9
    assert report["classification"].keys() == {"gradient", "steps", "bayes"}
    for found in report["classification"].values():
        assert {"accuracy", "calibration_error", "milliseconds_per_image"} == found.keys()


def test_the_sweep_of_the_exact_inverse_includes_annealed_guidance(finished):
    sweep = finished[1]["sweep"]
    assert [(row["guidance"], row["annealed"]) for row in sweep["exact"]] == [(0, False), (1, False), (1, True)]
    assert [row["guidance"] for row in sweep["reverse"]] == [0, 1]
    best = min(row["frechet_distance"] for row in sweep["exact"])
    assert finished[1]["samples"]["exact"]["frechet_distance"] == best


def test_samples_are_in_the_adm_format_with_the_same_labels(finished):
    exact, reverse = (read_npz(finished[0] / f"samples_{name}.npz") for name in ("exact", "reverse"))
    assert exact["arr_0"].shape == reverse["arr_0"].shape == (100, 8, 8, 1)
    assert exact["arr_0"].dtype == np.uint8
    assert (exact["arr_1"] == reverse["arr_1"]).all()


def test_the_model_folder_reproduces_the_samples(finished):
    out, report, _ = finished
    pipe = Pipeline.from_pretrained(out / "model")
    saved = read_npz(out / "samples_reverse.npz")
    guidance = report["samples"]["reverse"]["guidance"]
    drawn = pipe.sample_pixels(saved["arr_1"][:20].tolist(), guidance=guidance)
    assert (drawn.permute(0, 2, 3, 1).numpy() == saved["arr_0"][:20]).all()


def test_the_page_is_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page)
    assert not re.findall(r"\$[a-z{]", page)  # no placeholder is left
    assert page.count("<img") == 3 + 6 + 5


def test_progress_shows_step_loss_speed_and_time_left(finished):
    lines = [line for line in finished[2].splitlines() if line.startswith(("flow", "reverse", "judge"))]
    assert len(lines) >= 9
    assert all(re.search(r"step +\d+/20 +loss .* images/s +\d+:\d\d left", line) for line in lines)


def test_the_final_tables_fit_a_terminal(finished):
    printed = io.StringIO()
    for table in summary_tables(finished[1]):
        Console(file=printed, width=80).print(table)
    assert "Fréchet distance" in printed.getvalue()
    assert "…" not in printed.getvalue()
