"""`biflow evaluate`: images by number, statistics of real images, and what is made of both."""

import json
import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import multiprocessing as mp

from biflow.checkpoint import save_model
from biflow.cli.evaluate import parse_sweep
from biflow.config import ReadingConfig
from biflow.config.evaluation import EvaluationConfig
from biflow.data.images import to_pil
from biflow.data.npz import write_npz
from biflow.errors import InputError
from biflow.evaluation import samples
from biflow.evaluation.cost import measure_cost, operations_of
from biflow.evaluation.evaluate import evaluate
from biflow.evaluation.metrics import Gaussian, frechet_distance
from biflow.evaluation.reference import join_parts, load_adm_reference, load_reference, measure_part
from biflow.evaluation.samples import features_of, make_labels
from biflow.features.inception import Inception
from biflow.features.judge import Judge, save_judge
from biflow.features.metric_networks import make_feature_net
from biflow.pipeline import Drawn, Pipeline
from biflow.plan.operations import sampling
from biflow.sampling.guidance import Guidance
from biflow.sampling.samplers import Jacobi, OnePass, Refine, Sequential
from tests.builders import NUM_CLASSES, read_npz, tiny_config, tiny_images, tiny_model

QUIET = Console(quiet=True)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A model, a judge with random weights, and a folder of 60 images of its three classes, some of them held out."""
    monkeypatch.setattr(samples, "SHARD_SIZE", 10)
    monkeypatch.setattr("biflow.evaluation.evaluate.TIMED_BATCHES", (1, 2))
    save_model(tiny_model(), tmp_path / "model")
    torch.manual_seed(0)
    save_judge(Judge(1, NUM_CLASSES).requires_grad_(False), tmp_path / "judge")
    write_folder(tmp_path / "images", "abc", 20)
    return tmp_path


def write_folder(folder: Path, classes: str, each: int, size: int = 4) -> None:
    images = torch.randint(0, 256, (len(classes) * each, 1, size, size), generator=torch.Generator().manual_seed(5))
    for place, image in enumerate(images.to(torch.uint8)):
        path = folder / classes[place % len(classes)] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)


def config_in(folder: Path, **changes: object) -> EvaluationConfig:
    values = {
        "data": f"folder:{folder / 'images'}",
        "num": 25,
        "features": (f"judge:{folder / 'judge'}",),
        "reading": ReadingConfig(test_share=0.2),
    }
    return EvaluationConfig(**{**values, **changes})


def measured(folder: Path, out: str, *, model: Path | None = None, **changes: object) -> dict:
    return evaluate(model or folder / "model", config_in(folder, **changes), folder / out, QUIET)


def check_near(one: dict, other: dict) -> None:
    """The same measures, but for rounding."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value is None if other[key] is None else value == pytest.approx(other[key], rel=1e-4, abs=1e-6), key


def command(folder: Path, out: str, *more: object) -> list[object]:
    return [
        *("evaluate", folder / "model", "--data", f"folder:{folder / 'images'}", "--num", 25, "--out", folder / out),
        *("--features", f"judge:{folder / 'judge'}", "--set", "reading.test_share=0.2", *more),
    ]


def test_a_model_is_measured_from_the_command_line(world, biflow):
    code, out, err = biflow(*command(world, "out", "--set", f"npz={world / 'samples.npz'}"))
    assert (code, err) == (0, "")
    assert "Fréchet distance" in out
    result = json.loads((world / "out" / "evaluation.json").read_text())
    pipe = Pipeline.from_pretrained(world / "model")
    pixels = pipe.sample_pixels(torch.arange(25) % NUM_CLASSES)
    stored = read_npz(world / "samples.npz")
    assert torch.equal(torch.from_numpy(stored["arr_0"]).permute(0, 3, 1, 2), pixels)
    net = make_feature_net(f"judge:{world / 'judge'}")
    reference = load_reference(world / "out" / "reference" / "judge.safetensors")
    expected = frechet_distance(Gaussian.fit(features_of(net, pixels, batch_size=7).pooled), reference.pooled)
    assert result["metrics"]["judge"]["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert result["metrics"]["judge"]["reliable"] is False
    assert result["data"] == {**result["data"], "images": 47, "test_images": 13, "split": "train"}
    assert result["test"]["images"] == 13
    assert all(math.isfinite(value) for value in result["test"].values())
    assert result["cost"]["parameters"] == sum(p.numel() for p in pipe.model.reverse.parameters())
    assert result["cost"]["network_calls"] == 1
    page = (world / "out" / "evaluation.html").read_text()
    assert "fewer images than features" in page
    assert "<img" in page


def test_samples_of_a_file_get_the_same_numbers_as_the_model(world, biflow):
    of_model = measured(world, "out", npz=str(world / "samples.npz"))
    arguments = command(world, "again")
    arguments[1] = world / "samples.npz"
    assert biflow(*arguments)[0] == 0
    of_file = json.loads((world / "again" / "evaluation.json").read_text())
    check_near(of_file["metrics"]["judge"], of_model["metrics"]["judge"])
    assert "cost" not in of_file


def test_an_interrupted_evaluation_goes_on_to_the_same_images(world, biflow, monkeypatch):
    whole = measured(world, "whole")
    draw, starts = Pipeline.draw, []

    def stop_at_second(self, labels, **how):
        starts.append(how.get("start", 0))
        if len(starts) == 2:
            raise KeyboardInterrupt
        return draw(self, labels, **how)

    monkeypatch.setattr(Pipeline, "draw", stop_at_second)
    code, _, err = biflow(*command(world, "broken"))
    assert code == 130
    assert "Samples are kept; run the same command to continue." in err
    assert biflow(*command(world, "broken"))[0] == 0
    assert starts[:4] == [0, 10, 10, 20]
    result = json.loads((world / "broken" / "evaluation.json").read_text())
    assert result["metrics"] == whole["metrics"]


def test_more_images_are_added_to_those_that_are_there(world, monkeypatch):
    measured(world, "out", num=15)
    starts, draw = [], Pipeline.draw
    monkeypatch.setattr(
        Pipeline, "draw", lambda self, labels, **how: starts.append(how.get("start", 0)) or draw(self, labels, **how)
    )
    more, fewer = (measured(world, "out", num=num)["metrics"]["judge"] for num in (25, 12))
    assert starts[:2] == [10, 20]
    check_near(more, measured(world, "fresh", num=25)["metrics"]["judge"])
    check_near(fewer, measured(world, "few", num=12)["metrics"]["judge"])


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: content[:-1] + b"?"])
@pytest.mark.parametrize("part", ["", "features/*"])
def test_a_shard_that_was_cut_or_changed_is_made_again(world, damage, part):
    first = measured(world, "out", npz=str(world / "first.npz"))
    (shard,) = (world / "out" / "samples").glob(f"{part}/00001.safetensors".lstrip("/"))
    shard.write_bytes(damage(shard.read_bytes()))
    assert measured(world, "out", npz=str(world / "again.npz"))["metrics"] == first["metrics"]
    assert np.array_equal(*(read_npz(world / f"{name}.npz")["arr_0"] for name in ("first", "again")))


def evaluate_in_process(rank: int, port: int, folder: str) -> None:
    import os

    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    torch.set_num_threads(1)
    samples.SHARD_SIZE = 10
    result = evaluate(Path(folder) / "model", config_in(Path(folder), batch_size=5), Path(folder) / "two", QUIET)
    assert (result is None) == (rank == 1)


def test_two_processes_measure_what_one_does(world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(evaluate_in_process, args=(port, str(world)), nprocs=2)
    one = measured(world, "one")
    two = json.loads((world / "two" / "evaluation.json").read_text())
    for shard in ("00000", "00001", "00002"):
        tensors = [load_file(world / out / "samples" / f"{shard}.safetensors") for out in ("one", "two")]
        assert torch.equal(tensors[0]["pixels"], tensors[1]["pixels"])
    check_near(two["metrics"]["judge"], one["metrics"]["judge"])


def test_a_sweep_finds_the_best_strength_on_other_images(world, biflow):
    code, out, _ = biflow(*command(world, "out", "--sweep", "guidance=0:1:0.5", "--set", "sweep_num=12"))
    assert code == 0
    assert "guidance sweep" in out
    result = json.loads((world / "out" / "evaluation.json").read_text())
    tried = result["sweep"]["tried"]
    assert [each["guidance"] for each in tried] == [0.0, 0.5, 1.0]
    best = min(tried, key=lambda each: each["frechet_distance"])
    assert result["samples"]["guidance"] == f"{best['guidance']:g}"
    assert (result["sweep"]["num"], result["sweep"]["seed"], result["samples"]["seed"]) == (12, 1, 0)
    swept = load_file(world / "out" / "sweep" / f"{best['guidance']:g}" / "00000.safetensors")["pixels"]
    assert not torch.equal(swept, load_file(world / "out" / "samples" / "00000.safetensors")["pixels"])
    assert "<svg" in (world / "out" / "evaluation.html").read_text()


@pytest.mark.parametrize(
    "text", ["guidance=0:1", "guidance=1:0:0.5", "guidance=0:1:0", "strength=0:1:1", "0:1:1", "guidance=0:9:1e-9"]
)
def test_a_sweep_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"Expected (a sweep such as|at most 1000 strengths)"):
        parse_sweep(text)


def test_random_labels_are_drawn_by_number():
    many, few = make_labels("random", 500, 7, seed=3), make_labels("random", 20, 7, seed=3)
    assert torch.equal(many[:20], few)
    assert set(many.tolist()) == set(range(7))
    assert not torch.equal(many, make_labels("random", 500, 7, seed=4))


def test_a_judge_is_trained_where_none_is_given(world, monkeypatch):
    monkeypatch.setattr("biflow.evaluation.real_images.CLASSIFIER_FIT", short_fit())
    result = measured(world, "out", features=("judge",))
    assert result["references"]["judge"]["images"] == 47
    assert sorted(path.name for path in (world / "out" / "judge").iterdir()) == ["judge.json", "judge.safetensors"]
    assert not list((world / "out").glob("judge_*"))
    again = measured(world, "again", features=(f"judge:{world / 'out' / 'judge'}",))
    assert again["metrics"] == result["metrics"]


def short_fit():
    from biflow.training.stages import CLASSIFIER_FIT

    return CLASSIFIER_FIT.model_copy(update={"steps": 3, "batch_size": 4})


def test_an_unconditional_model_is_measured_without_classes(world):
    save_model(tiny_model(tiny_config(num_classes=0)), world / "model")
    result = measured(world, "out")
    assert result["test"]["accuracy_by_gradient"] is None
    assert math.isfinite(result["test"]["bits_per_dim"])


# Statistics of real images


def test_statistics_are_made_once_and_read_back(world, monkeypatch):
    first = measured(world, "out", references=(str(world / "stats.safetensors"),))
    monkeypatch.setattr("biflow.evaluation.real_images.measure_part", None)
    again = measured(world, "other", references=(str(world / "stats.safetensors"),))
    assert again["metrics"] == first["metrics"]


def test_parts_of_several_processes_join_to_the_whole(world):
    net, data = make_feature_net(f"judge:{world / 'judge'}"), tiny_images(21)

    def parts(size):
        return [
            measure_part(net, data, rank=rank, size=size, batch_size=4, progress=lambda _: None) for rank in range(size)
        ]

    one, three = join_parts(parts(1), {}), join_parts(parts(3), {})
    torch.testing.assert_close(three.pooled.covariance, one.pooled.covariance, rtol=1e-9, atol=1e-9)
    assert torch.equal(three.examples, one.examples)
    pooled = features_of(net, data.images, batch_size=21).pooled
    torch.testing.assert_close(one.pooled.mean, pooled.double().mean(dim=0))
    empty = join_parts(parts(8), {})
    assert empty.pooled.count == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reading": ReadingConfig(test_share=0.2, crop="tarflow")}, "with crop = tarflow; .* made with adm"),
        ({"reading": ReadingConfig(test_share=0.3)}, r"with images = \d+; .* made with 47"),
        ({"split": "test"}, "with split = test; .* made with train"),
    ],
)
def test_statistics_made_another_way_are_refused(world, change, message):
    path = world / "stats.safetensors"
    measured(world, "out", references=(str(path),))
    with pytest.raises(InputError, match=message):
        measured(world, "other", references=(str(path),), **change)


def test_statistics_of_another_network_or_size_are_refused(world):
    path = world / "stats.safetensors"
    measured(world, "out", references=(str(path),))
    torch.manual_seed(1)
    save_judge(Judge(1, NUM_CLASSES).requires_grad_(False), world / "judge")
    with pytest.raises(InputError, match=r"with weights = [0-9a-f]{12}...; .* made with [0-9a-f]{12}"):
        measured(world, "other", references=(str(path),))
    save_model(tiny_model(tiny_config(image_size=8)), world / "model8")
    torch.manual_seed(0)
    save_judge(Judge(1, NUM_CLASSES).requires_grad_(False), world / "judge")
    with pytest.raises(InputError, match=r"with image_shape = \[1, 8, 8\]; .* made with \[1, 4, 4\]"):
        measured(world, "other", references=(str(path),), model=world / "model8")
    assert not (world / "other" / "samples").exists()


@pytest.mark.parametrize("place", [9, 300, -1])
def test_statistics_that_have_changed_are_refused(world, place):
    path = world / "stats.safetensors"
    measured(world, "out", references=(str(path),))
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="another format, or damaged"):
        measured(world, "other", references=(str(path),))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of Inception's layout with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(Inception().state_dict(), path)
    return path


def test_a_reference_of_adm_is_read(inception, tmp_path):
    net, data = make_feature_net(f"inception:{inception}"), tiny_images(6)
    colour = data.images.expand(-1, 3, -1, -1)
    found = features_of(net, colour, batch_size=6)
    arrays = {"arr_0": colour.permute(0, 2, 3, 1).numpy()}
    for name, features in (("", found.pooled), ("_s", found.spatial)):
        gaussian = Gaussian.fit(features)
        arrays |= {f"mu{name}": gaussian.mean.numpy(), f"sigma{name}": gaussian.covariance.numpy()}
    np.savez(tmp_path / "adm.npz", **arrays)
    reference = load_adm_reference(tmp_path / "adm.npz", net, (3, 4, 4), batch_size=2)
    assert frechet_distance(reference.pooled, Gaussian.fit(found.pooled)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(reference.examples, found.pooled, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"of 8x8 images, as the model's; .* are of 4x4"):
        load_adm_reference(tmp_path / "adm.npz", net, (3, 8, 8), batch_size=2)
    np.savez(tmp_path / "none.npz", mu=arrays["mu"])
    with pytest.raises(InputError, match="Expected mu, sigma, mu_s, sigma_s and arr_0"):
        load_adm_reference(tmp_path / "none.npz", net, (3, 4, 4), batch_size=2)


def test_inception_gives_the_measures_of_the_field(inception, world, biflow):
    for place, path in enumerate(sorted((world / "images").rglob("*.png"))):
        if place % 20 >= 3:
            path.unlink()
    few = ["--num", 5, "--set", "reading.test_share=0"]
    code, out, _ = biflow(*command(world, "out", "--features", f"inception:{inception}", *few))
    assert code == 0
    assert all(name in out for name in ("FID", "sFID", "Inception Score", "KID"))
    found = json.loads((world / "out" / "evaluation.json").read_text())["metrics"]["inception"]
    assert found["inception_score"] >= 1 - 1e-9
    assert found["spatial_frechet_distance"] >= 0


def test_a_method_is_given_with_its_settings(world, biflow):
    code, _, err = biflow(*command(world, "settled", "--method", "jacobi,tolerance=0.01", "--guidance", "0.5,annealed"))
    assert (code, err) == (0, "")
    found = json.loads((world / "settled" / "evaluation.json").read_text())["samples"]
    assert (found["method"], found["guidance"]) == ("jacobi,tolerance=0.01", "0.5,annealed")


# What cannot be measured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "samples.npz"}, "Leave out --sweep and npz"),
        ({"data": "latents:x"}, "Use the images that they were encoded from"),
        ({"reading": ReadingConfig(streaming=True)}, "Set reading.streaming=false"),
        ({"split": "test", "reading": ReadingConfig()}, "has none of a, b, c. Give data with all classes"),
        ({"features": ("incepton",)}, "did you mean inception"),
        ({"features": ("judge:nowhere",)}, "judge.json; cannot read it"),
        ({"references": ("a.safetensors", "b.safetensors")}, "one of references for each of 1"),
        ({"references": ("a.txt",)}, "a .safetensors file"),
        ({"method": "sequentiel"}, "did you mean sequential"),
        ({"guidance": "-1"}, "guidance to be a number, 0 or more"),
        ({"data": "digits"}, "of shape .1, 4, 4."),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_drawn(world, change, message):
    if "model" in change:
        write_npz(world / "samples.npz", tiny_images(5).images, torch.arange(5))
        change = {"model": world / "samples.npz", "num": 5, "npz": str(world / "x.npz")}
    with pytest.raises(InputError, match=message):
        measured(world, "out", **change)
    assert not (world / "out" / "samples").exists()


def test_a_class_without_real_images_is_named(world):
    few = ReadingConfig(test_share=0.04)
    with pytest.raises(InputError, match=r"the test split of .* has none of .*. Give data with all classes"):
        measured(world, "out", reading=few, split="test")


def test_a_model_that_knows_its_training_refuses_another_split(world):
    pipe = Pipeline.from_pretrained(world / "model")
    reading = ReadingConfig(test_share=0.2).model_dump(mode="json")
    training = {"config": {"data": f"folder:{world / 'images'}", "reading": reading}}
    Pipeline(pipe.model, training).save_pretrained(world / "model")
    measured(world, "out")
    with pytest.raises(InputError, match=r"reading\.test_share=0\.2, with which .* got 0\.3\. Leave it out, or set"):
        measured(world, "other", reading=ReadingConfig(test_share=0.3))


def test_a_model_of_the_hub_is_measured(world, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(world / "model"))
    assert measured(world, "out", model=Path("me/tiny"))["metrics"] == measured(world, "local")["metrics"]


def test_labels_of_other_data_are_refused(world):
    write_npz(world / "samples.npz", tiny_images(5).images, torch.arange(5) + 3)
    with pytest.raises(InputError, match=r"labels from 0 to 2 .* got 3 to 7"):
        measured(world, "out", model=world / "samples.npz", num=None)


def test_samples_of_a_file_are_all_measured_into_new_folders(world):
    write_npz(world / "samples.npz", tiny_images(9).images, tiny_images(9).labels)
    measured(
        world, "first", references=(str(world / "stats.safetensors"),), npz=str(world / "new" / "folder" / "x.npz")
    )
    result = measured(
        world, "new/out", model=world / "samples.npz", num=None, references=(str(world / "stats.safetensors"),)
    )
    assert result["samples"]["num"] == 9
    assert (world / "new" / "out" / "evaluation.html").is_file()


def test_fewer_samples_than_asked_for_are_refused(world):
    write_npz(world / "samples.npz", tiny_images(5).images, torch.arange(5))
    with pytest.raises(InputError, match=r"Expected 25 images in .*; it holds 5. Give --num 5 or less"):
        measured(world, "out", model=world / "samples.npz")


def test_samples_that_are_not_finite_stop_it_unless_they_are_drawn_again(world, monkeypatch):
    draw = Pipeline.draw

    def with_faults(self, labels, **how):
        drawn = draw(self, labels, **how)
        broken = 2 * (len(labels) > 2)
        return Drawn(drawn.pixels, broken, 0 if how.get("redraw") else broken)

    monkeypatch.setattr(Pipeline, "draw", with_faults)
    with pytest.raises(InputError, match=r"2 of images 0 to 9 contain some. To continue, set redraw=true, or choose"):
        measured(world, "out")
    result = measured(world, "redrawn", redraw=True)
    assert result["samples"]["redrawn"] == 6


def test_samples_of_another_model_are_not_taken_up(world):
    measured(world, "out")
    save_model(tiny_model(seed=1), world / "model")
    with pytest.raises(InputError, match=r"Expected weights=.* Evaluate the same model"):
        measured(world, "out")
    save_model(tiny_model(), world / "model")
    with pytest.raises(InputError, match=r"guidance=0, .* got 1\. Evaluate the same model"):
        measured(world, "out", guidance="1")


# What an image takes


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_operations_are_those_of_the_plan(strength):
    config, guidance = tiny_config(), Guidance(strength)
    counts, guided = sampling(config), ", guided" * bool(strength)
    assert operations_of(OnePass(), guidance, config) == counts[f"one pass{guided}"]
    exact = counts[f"exact inverse{guided}"]
    assert operations_of(Sequential(denoise=0.0), guidance, config) == exact
    assert operations_of(Sequential(), guidance, config) == exact + counts["score step"]
    assert operations_of(Jacobi(), guidance, config) is None


def test_cost_counts_the_networks_that_a_sampler_uses():
    pipe = Pipeline(tiny_model())
    flow, reverse = (sum(p.numel() for p in net.parameters()) for net in (pipe.model.flow, pipe.model.reverse))
    costs = {
        sampler: measure_cost(pipe, sampler, Guidance(0.0), (1, 2)) for sampler in (OnePass(), Sequential(), Refine())
    }
    assert [cost["parameters"] for cost in costs.values()] == [reverse, flow, flow + reverse]
    assert costs[Sequential()]["network_calls"] > 1
    for cost in costs.values():
        assert set(cost["milliseconds_per_image_by_batch_size"]) == {"1", "2"}
        assert cost["images_per_second"] > 0


def test_metrics_in_the_features_of_finishing_say_so_where_samples_are_of_the_reverse_model(world):
    """Finished in the features of a judge, which no configuration can name: those of the others need weights."""
    pipe = Pipeline.from_pretrained(world / "model")
    training = {"config": {"fit_finish": {"features": {"kind": "judge"}}}}
    save_model(pipe.model, world / "finished", training)
    found = measured(world, "reverse", model=world / "finished")
    assert found["samples"]["finished_in"] == "judge"
    assert "Fréchet distance, reference classifier, trained on" in found["tables"]["quality"][1][0]
    assert "judge by other features" in (world / "reverse" / "evaluation.html").read_text()
    exact = measured(world, "exact", model=world / "finished", method="sequential")
    assert exact["samples"]["finished_in"] is None
    assert "trained on" not in str(exact["tables"]["quality"])
