"""The command line, called in this process as the console script calls it."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biflow.checkpoint import save_model
from biflow.cli.process import PATIENCE, share_processors
from biflow.config import load_recipe
from biflow.training.hooks import read_history
from tests.builders import read_npz, tiny_config, tiny_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def model(tmp_path):
    save_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def test_help_names_every_command(biflow):
    code, out, _ = biflow("--help")
    assert code == 0
    assert all(command in out for command in ("quickstart", "train", "sample", "recipes"))


def test_another_process_than_the_first_says_its_rank_and_leaves_the_first_time_to_speak(biflow, monkeypatch):
    assert biflow("train", "no_recipe", "--out", "x")[2].startswith("Error: Unknown")
    monkeypatch.setenv("RANK", "1")
    start = time.monotonic()
    assert biflow("train", "no_recipe", "--out", "x")[2].startswith("Error in process 1: Unknown")
    assert time.monotonic() - start > PATIENCE


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "100"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_wait_briefly_unless_told_how(monkeypatch, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_processors()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_the_command_line_says_how_threads_wait_before_torch_is_loaded():
    code = "import sys, biflow.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(biflow):
    import biflow as package

    assert biflow("--version")[:2] == (0, package.__version__ + "\n")


def test_recipes_are_listed_and_printed_whole(biflow):
    assert "biflow_digits" in biflow("recipes")[1]
    assert "noise_std" in biflow("recipes", "biflow_digits")[1]


def test_sample_writes_the_adm_format(biflow, model, tmp_path):
    code, out, _ = biflow("sample", model, "--num", 7, "--out", tmp_path / "new" / "images.npz")
    assert (code, "7 images" in out) == (0, True)
    saved = read_npz(tmp_path / "new" / "images.npz")
    assert saved["arr_0"].dtype == np.uint8
    assert saved["arr_0"].shape == (7, 4, 4, 1)
    assert saved["arr_1"].dtype == np.int64
    assert saved["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_sample_writes_a_grid_that_shows_every_image(biflow, model, tmp_path):
    biflow("sample", model, "--num", 6, "--out", tmp_path / "grid.png")
    biflow("sample", model, "--num", 6, "--out", tmp_path / "images.npz")
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    images = read_npz(tmp_path / "images.npz")["arr_0"]
    assert grid.shape[1] >= 512
    times = grid.shape[1] // (2 * 5 - 1)
    grid = grid[::times, ::times]
    assert grid.shape == (3 * 5 - 1, 2 * 5 - 1)
    assert (grid[:4, 5:9] == images[1, ..., 0]).all()
    assert (grid[10:14, :4] == images[4, ..., 0]).all()


def test_a_recipe_that_was_printed_can_be_trained(biflow, tmp_path):
    (tmp_path / "mine.yaml").write_text(biflow("recipes", "biflow_digits")[1])
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("biflow_digits")


def test_a_key_is_explained(biflow):
    code, out, _ = biflow("recipes", "biflow_digits", "--explain", "model.flow.clip")
    assert code == 0
    assert "default: null" in out
    assert "here: 1.0" in out


def test_settings_win_over_the_smoke_size():
    config = load_recipe("biflow_digits", ["fit_flow.steps=77"], small=True)
    assert (config.fit_flow.steps, config.fit_reverse.steps) == (77, 20)


def test_sample_writes_a_folder_of_pngs(biflow, model, tmp_path):
    biflow("sample", model, "--num", 11, "--label", 2, "--out", tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert (len(names), names[0], names[-1]) == (11, "00_class2.png", "10_class2.png")


@pytest.mark.parametrize("method", ["sequential", "jacobi,tolerance=0", "gs-jacobi,tolerance=0,denoise=1"])
def test_every_exact_method_draws_the_same_images(biflow, model, tmp_path, method):
    for name, each in (("a", "sequential"), ("b", method)):
        options = [
            "--num",
            5,
            "--method",
            each,
            "--guidance",
            "1.5,annealed,on=shift",
            "--out",
            tmp_path / f"{name}.npz",
        ]
        assert biflow("sample", model, *options)[0] == 0
    drawn = [read_npz(tmp_path / name)["arr_0"].astype(int) for name in ("a.npz", "b.npz")]
    assert abs(drawn[0] - drawn[1]).max() <= 1


def test_score_ranks_images_and_writes_a_table(biflow, model, tmp_path):
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((9, 7), 60 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    code, out, err = biflow("score", model, tmp_path / "images", "--draws", 2, "--out", tmp_path / "new" / "scores.csv")
    assert code == 0
    assert "least likely of 3 images" in out
    assert "Skipped below/broken.png (" in err
    lines = (tmp_path / "new" / "scores.csv").read_text().splitlines()
    assert lines[0] == "rank,image,nats,bits_per_dim"
    assert {line.split(",")[1] for line in lines[1:]} == {f"below/{i}.png" for i in range(3)}
    nats = [float(line.split(",")[2]) for line in lines[1:]]
    assert nats == sorted(nats)


def test_score_can_contrast_a_label_with_none(biflow, model, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1))
    code, out, _ = biflow("score", model, tmp_path / "x.npz", "--label", 1, "--contrast", "--show", 2)
    assert code == 0
    assert out.count("x.npz[") == 2


def test_classify_names_the_best_classes_and_writes_a_table(biflow, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 7), 60 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    code, out, err = biflow("classify", model, folder, "--top", 2, "--out", tmp_path / "new" / "classes.csv")
    assert code == 0
    assert "3 of 3 images" in out
    assert "Skipped broken.png (" in err
    with (tmp_path / "new" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["rank"]) for row in rows] == [(f"{i}.png", rank) for i in range(3) for rank in "12"]
    assert all(row["name"] == "abc"[int(row["label"])] for row in rows)
    assert all(float(a["probability"]) >= float(b["probability"]) for a, b in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize("method", ["gradient", "steps", "bayes"])
def test_every_way_of_classifying_gives_probabilities(biflow, model, tmp_path, method):
    np.savez(tmp_path / "x.npz", arr_0=np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1))
    options = ["--method", method, "--draws", 2, "--noise", "uniform", "--top", 3, "--out", tmp_path / "c.csv"]
    assert biflow("classify", model, tmp_path / "x.npz", *options)[0] == 0
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    totals = [sum(float(row["probability"]) for row in rows[i : i + 3]) for i in range(0, len(rows), 3)]
    assert totals == pytest.approx([1] * 4, abs=1e-4)


def test_an_unconditional_model_cannot_classify(biflow, tmp_path):
    save_model(tiny_model(tiny_config(num_classes=0, reverse=None)), tmp_path / "model")
    np.savez(tmp_path / "x.npz", arr_0=np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1))
    code, _, err = biflow("classify", tmp_path / "model", tmp_path / "x.npz")
    assert code == 2
    assert "this one is unconditional" in err


def test_import_makes_a_model_that_samples(biflow, tmp_path):
    options = ["--noise-std", 0.1, "--image-size", 8, "--class-names", "a,b,c,d,e"]
    code, out, _ = biflow("import", "tarflow", GOLDEN / "tarflow_conditional.pth", "--out", tmp_path / "m", *options)
    assert code == 0
    assert "8x8 images of 1 channel in patches of 2x2, 5 classes, 3 blocks of 2 layers, width 64" in out
    code, _, _ = biflow("sample", tmp_path / "m", "--method", "gs-jacobi", "--num", 5, "--out", tmp_path / "x.png")
    assert code == 0
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] >= 512


def test_sample_takes_every_option(biflow, model, tmp_path):
    arguments = ["sample", model, "--num", 3, "--method", "sequential", "--guidance", 1.5]
    code, _, _ = biflow(*arguments, "--seed", 4, "--set", "batch_size=2", "--out", tmp_path / "a.npz")
    assert code == 0
    biflow(*arguments, "--seed", 5, "--out", tmp_path / "b.npz")
    drawn = [read_npz(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz")]
    assert not (drawn[0] == drawn[1]).all()


def test_plan_says_what_a_recipe_will_cost(biflow):
    code, out, _ = biflow("plan", "biflow_digits", "--devices", 2, "--set", "fit_flow.steps=7")
    assert code == 0
    for part in ("410,144", "training, reverse", "exact inverse, guided", "FSDP2", "hours on 2 devices", "assuming"):
        assert part in " ".join(out.split())
    assert re.search(r"flow +│ +7 ", out)


BAD = {
    "missing model": (["sample", "{tmp}/nowhere", "--out", "{tmp}/x.png"], "does not exist"),
    "label out of range": (["sample", "{model}", "--label", 9, "--out", "{tmp}/x.png"], "labels from 0 to 2"),
    "negative guidance": (
        ["sample", "{model}", "--guidance", -1, "--out", "{tmp}/x.png"],
        "guidance to be a number, 0 or more",
    ),
    "unknown method": (["sample", "{model}", "--method", "jacoby", "--out", "{tmp}/x.png"], "Unknown method"),
    "model is a file": (["sample", "{model}/config.json", "--out", "{tmp}/x.png"], "is not a folder"),
    "endless guidance": (
        ["sample", "{model}", "--guidance", "inf", "--out", "{tmp}/x.png"],
        "guidance to be a number, 0 or more",
    ),
    "annealed reverse": (
        ["sample", "{model}", "--guidance", "1,annealed", "--out", "{tmp}/x.png"],
        "the exact inverse",
    ),
    "guidance without number": (["sample", "{model}", "--guidance", "annealed", "--out", "{tmp}/x.png"], "a number"),
    "unknown guidance": (
        ["sample", "{model}", "--guidance", "1,aneal", "--out", "{tmp}/x.png"],
        "did you mean annealed",
    ),
    "guidance on nothing": (["sample", "{model}", "--guidance", "1,on=all", "--out", "{tmp}/x.png"], "log_scale"),
    "reverse has no settings": (
        ["sample", "{model}", "--method", "reverse,a=1", "--out", "{tmp}/x.png"],
        "it has none",
    ),
    "tolerance below zero": (
        ["sample", "{model}", "--method", "jacobi,tolerance=-1", "--out", "{tmp}/x.png"],
        "tolerance to be a number, 0",
    ),
    "group too large": (
        ["sample", "{model}", "--method", "jacobi,groups=9", "--out", "{tmp}/x.png"],
        "a whole number from 1 to 4",
    ),
    "groups not numbers": (["sample", "{model}", "--method", "jacobi,groups=x", "--out", "{tmp}/x.png"], "groups: "),
    "no images to score": (["score", "{model}", "{model}"], "passed over: 1 .json, 1 .safetensors"),
    "images that do not exist": (["score", "{model}", "{tmp}/none"], "No such file"),
    "an image that is none": (["score", "{model}", "{notes}"], "not a PNG, JPEG"),
    "contrast without label": (["score", "{model}", "{tmp}", "--contrast"], "Add --label"),
    "score of no class": (["score", "{model}", "{golden}/x.npz", "--label", 7], "labels from 0 to 2"),
    "scores into a folder": (["score", "{model}", "{golden}/x.npz", "--out", "{model}"], "is a folder"),
    "unknown way to classify": (["classify", "{model}", "{golden}/x.npz", "--method", "gradiant"], "gradient"),
    "no draw to classify": (["classify", "{model}", "{golden}/x.npz", "--draws", 0], "draws"),
    "classes into a folder": (["classify", "{model}", "{golden}/x.npz", "--out", "{model}"], "is a folder"),
    "checkpoint that is none": (["import", "tarflow", "{notes}", "--noise-std", 1, "--out", "{tmp}/x"], "cannot read"),
    "checkpoint of open size": (
        ["import", "tarflow", "{golden}/tarflow_conditional.pth", "--noise-std", 1, "--out", "{tmp}/x"],
        "Expected image size 8",
    ),
    "import into a full folder": (
        ["import", "tarflow", "{golden}/tarflow_conditional.pth", "--noise-std", 1, "--out", "{model}"],
        "has files",
    ),
    "import without noise": (["import", "tarflow", "{notes}", "--out", "{tmp}/x"], "--noise-std"),
    "images that are not there": (["train", "tarflow_imagenet64", "--out", "{tmp}/r"], "imagenet64 does not exist"),
    "a run among the images": (
        ["train", "biflow_digits", "--set", "data=folder:{tmp}", "--out", "{tmp}/r"],
        "Expected an output outside of",
    ),
    "no folder to check": (["data", "check", "{tmp}/none"], "does not exist"),
    "a file to check": (["data", "check", "{notes}"], "is not a folder"),
    "a folder without images": (["data", "check", "{model}"], "passed over: 1 .json, 1 .safetensors"),
    "a contact sheet among the images": (["data", "check", "{tmp}", "--out", "{tmp}/x.png"], "outside of"),
    "a list among the images": (["data", "check", "{tmp}", "--rejected", "{tmp}/x/r.txt"], "outside of"),
    "a contact sheet that is none": (["data", "check", "{model}", "--out", "{tmp}/x.gif"], "ending in .png"),
    "a name too long": (["sample", "{model}", "--out", "{tmp}/" + "x" * 300 + "/x.png"], "Choose another output"),
    "unfit model": (
        ["train", "biflow_digits", "--set", "model.num_classes=5", "--out", "{tmp}/r"],
        "num_classes to be 10",
    ),
    "broken YAML": (["train", "biflow_digits", "--set", "seed=[1", "--out", "{tmp}/r"], "valid YAML"),
    "no images": (["sample", "{model}", "--num", 0, "--out", "{tmp}/x.png"], "num"),
    "not a number": (["sample", "{model}", "--num", "ten", "--out", "{tmp}/x.png"], "num"),
    "output is a file": (["sample", "{model}", "--out", "{notes}"], "is a file"),
    "the run instead of its model": (["sample", "{tmp}", "--out", "{tmp}/x.png"], "is a run folder"),
    "unknown file type": (["sample", "{model}", "--out", "{tmp}/x.gif"], r".npz or .png"),
    "output below a file": (["sample", "{model}", "--out", "{model}/config.json/x.png"], "is a file"),
    "output folder in use": (["sample", "{model}", "--out", "{model}"], "has files"),
    "unknown recipe": (["train", "biflow_digit", "--out", "{tmp}/run"], "did you mean biflow_digits"),
    "unknown key": (["train", "biflow_digits", "--set", "sed=1", "--out", "{tmp}/run"], "did you mean seed"),
    "wrong type": (["train", "biflow_digits", "--set", "seed=x", "--out", "{tmp}/run"], "expected a whole number"),
    "unknown data": (["train", "biflow_digits", "--set", "data=digit", "--out", "{tmp}/run"], "did you mean digits"),
    "training in a full folder": (["train", "biflow_digits", "--out", "{model}"], "has files"),
    "nothing to resume": (["quickstart", "--resume", "--out", "{tmp}/run"], "without --resume"),
    "missing option": (["train", "biflow_digits"], "--out"),
    "devices that cannot share": (["plan", "biflow_digits", "--devices", 7], "divisible by 7 devices; got 64"),
    "devices without memory": (
        ["plan", "biflow_digits", "--device-memory", 0],
        "--device-memory to be a number above 0; got 0",
    ),
    "plan of an unknown recipe": (["plan", "biflow_digit"], "did you mean biflow_digits"),
    "unknown option": (["quickstart", "--fast"], "--fast"),
    "unknown command": (["quikstart"], "quickstart"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(biflow, model, tmp_path, arguments, message):
    notes = tmp_path / "notes"
    notes.write_text("precious")
    golden = tmp_path / "golden"
    golden.mkdir()
    shutil.copy(GOLDEN / "tarflow_conditional.pth", golden)
    np.savez(golden / "x.npz", arr_0=np.zeros((2, 4, 4, 1), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    filled = [str(argument).format(model=model, tmp=tmp_path, notes=notes, golden=golden) for argument in arguments]
    code, out, err = biflow(*filled)
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert notes.read_text() == "precious"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stop_ends_cleanly_says_how_to_resume_and_resume_goes_on(tmp_path, signum, code):
    out = tmp_path / "my run"
    command = [sys.executable, "-c", "from biflow.cli.main import main; main()", "train", "biflow_digits"]
    settings = ["--set", "stage=flow", "--set", "fit_flow.steps=60", "--set", "fit_flow.log_every=1"]
    arguments = [*command, "--out", str(out), *settings]
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.readline()  # the first steps are done
    running.send_signal(signum)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    stopped = re.match(r"Stopped: the flow is saved after step (\d+) of 60; resume with (biflow .*)\n$", err)
    assert stopped, err
    assert shlex.split(stopped[2]) == ["biflow", *arguments[3:], "--resume"]
    assert not (out / "model").exists()

    if signum == signal.SIGTERM:  # a launcher that starts the same command again means to go on
        again = {"env": {**os.environ, "SLURM_RESTART_COUNT": "1"}}
    else:
        arguments, again = [*arguments, "--resume"], {}
    subprocess.run(arguments, check=True, capture_output=True, timeout=120, **again)
    steps = [line["step"] for line in read_history(out / "metrics.jsonl")]
    assert steps == list(range(1, 61))
    assert (out / "model" / "config.json").exists()
