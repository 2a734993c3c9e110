"""What an evaluation is made of: which images, labels, settings and numbers go where."""

import json
import math
import os
from contextlib import ExitStack

import pytest
import torch
from rich.console import Console

from biflow.config.evaluation import EvaluationConfig
from biflow.data.datasets import ImageSet, Split
from biflow.data.images import to_pil
from biflow.data.open import open_images
from biflow.distributed import World
from biflow.errors import InputError
from biflow.evaluation import evaluate as evaluation
from biflow.evaluation.compare import METRICS, compare
from biflow.evaluation.cost import milliseconds_per_image, operations_of
from biflow.evaluation.evaluate import EvaluatedSamples, check_classes, measure_test, write_result
from biflow.evaluation.real_images import EvaluationContext, RealImages, _open_net
from biflow.evaluation.reference import evenly_spaced, measure_reference
from biflow.evaluation.samples import SampleFolder
from biflow.features.metric_networks import Features, make_feature_net
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance
from biflow.sampling.samplers import OnePass
from tests.builders import tiny_config, tiny_images, tiny_model
from tests.evaluation.test_evaluate import config_in, measured, short_fit, world

__all__ = ["world"]  # the fixture


def test_indices_are_spread_evenly_over_all():
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    many = evenly_spaced(50_000, 10_000)
    assert many.diff().unique().tolist() == [5]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_shard_is_drawn_by_one_process(tmp_path, size, monkeypatch):
    monkeypatch.setattr("biflow.evaluation.samples.SHARD_SIZE", 2)
    folders = [SampleFolder(tmp_path, torch.arange(9), rank=rank, size=size) for rank in range(size)]
    drawn = [i for folder in folders for i, _ in folder.own]
    assert sorted(drawn) == [0, 1, 2, 3, 4]
    assert [labels.tolist() for _, labels in folders[0].shards] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_held_out_images_are_measured_with_their_own_labels_and_both_noises(monkeypatch):
    monkeypatch.setattr(evaluation, "TEST_IMAGES", 4)
    pipe, data = Pipeline(tiny_model()), tiny_images(12)
    test = ImageSet(data.images, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]), data.class_names)
    chosen = evenly_spaced(12, 4)
    pixels, labels = test.images[chosen], test.labels[chosen]
    found = measure_test(pipe, test)
    assert found == {
        "images": 4,
        "bits_per_dim": pytest.approx(pipe.log_prob(pixels, labels).bits_per_dim.mean().item()),
        "bits_per_dim_of_noisy_data": pytest.approx(
            pipe.log_prob(pixels, labels, noise="training").bits_per_dim.mean().item()
        ),
        "accuracy_by_gradient": (pipe.classify(pixels).labels == labels).double().mean().item(),
    }
    free = measure_test(Pipeline(tiny_model(tiny_config(num_classes=0))), test)
    assert free["accuracy_by_gradient"] is None
    assert math.isfinite(free["bits_per_dim"])
    assert measure_test(pipe, test.take(slice(0))) is None


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_any_class_without_real_images_is_named(missing):
    data = tiny_images(12)
    rest = data.take((data.labels != missing).nonzero().flatten())
    reals = RealImages(EvaluationConfig(data="digits"), Split(rest, data))
    with pytest.raises(InputError, match=rf"the train split of 'digits' has none of {'abc'[missing]}\."):
        check_classes(Pipeline(tiny_model()), reals)


def test_the_judge_is_trained_on_training_images_whichever_are_compared(world, monkeypatch):
    monkeypatch.setattr("biflow.evaluation.real_images.CLASSIFIER_FIT", short_fit())
    nets = {}
    for split in ("train", "test"):
        config = config_in(world, split=split)
        reals = RealImages(config, open_images(config.data, (1, 4, 4), config.reading))
        context = EvaluationContext(
            config, world / split, World(0, 1, torch.device("cpu")), Console(quiet=True), ExitStack()
        )
        nets[split] = _open_net("judge", reals, context)
        record = json.loads((world / split / "judge" / "judge.json").read_text())
        assert record["trained_on"]["images"] == len(reals.data.train)
    assert nets["train"].identity() == nets["test"].identity()


def test_samples_are_not_resumed_with_another_way_of_redrawing(world):
    measured(world, "out")
    with pytest.raises(InputError, match=r"redraw=False, .* got True"):
        measured(world, "out", redraw=True)


def test_the_cost_is_that_of_the_guidance_and_a_sweep_is_no_larger_than_the_samples(world):
    result = measured(world, "out", guidance="0.5", sweep=(0.5,), sweep_num=1000)
    guided = operations_of(OnePass(), Guidance(0.5), tiny_config())
    assert result["cost"]["gflops_per_image"] == pytest.approx(guided / 1e9)
    assert result["cost"]["gflops_per_image"] != operations_of(OnePass(), Guidance(0.0), tiny_config()) / 1e9
    assert result["sweep"]["num"] == result["samples"]["num"] == 25
    assert len(list((world / "out" / "sweep" / "0.5").glob("*.safetensors"))) == 3


def test_numbers_that_are_not_finite_are_null_in_the_file(world):
    result = measured(world, "out")
    result["metrics"]["judge"]["precision"] = math.nan
    samples = EvaluatedSamples(tiny_images(4).images, None, {})
    assert write_result(world / "out", result, samples)["metrics"]["judge"]["precision"] is None

    def refuse(name):
        raise AssertionError(name)

    json.loads((world / "out" / "evaluation.json").read_text(), parse_constant=refuse)


def test_metrics_of_few_real_images_are_unreliable_and_classes_are_those_of_the_highest_logit():
    class Net:
        name = "judge"

        def __call__(self, pixels):
            return Features(pixels.flatten(1).double())

    pixels, labels = tiny_images(40).images, torch.tensor([2, 0, 1, 1] * 10)
    features = Features(pixels.flatten(1).double(), logits=torch.eye(3)[labels])
    for count, reliable in ((12, False), (30, True)):
        reference = measure_reference(Net(), tiny_images(count, seed=1), batch_size=7)
        found = compare("judge", features, reference, labels)
        assert found["reliable"] is reliable
        assert found["class_accuracy"] == 1
    assert found.keys() >= {metric.key for metric in METRICS}


def test_spatial_statistics_are_of_the_spatial_features():
    class Net:
        name = "inception"

        def __call__(self, pixels):
            return Features(pixels.flatten(1).double(), pixels[:, 0, 0].double())

    data = tiny_images(12)
    found = measure_reference(Net(), data, batch_size=5)
    assert torch.allclose(found.pooled.mean, data.images.flatten(1).double().mean(0))
    assert torch.allclose(found.spatial.mean, data.images[:, 0, 0].double().mean(0))


def test_images_of_the_same_size_in_bytes_that_were_written_anew_have_other_facts(world):
    config, net = config_in(world, data=f"folder:{world / 'bitmaps'}"), make_feature_net(f"judge:{world / 'judge'}")
    found = []
    for round_ in (0, 1):
        for i, image in enumerate(tiny_images(12, seed=round_).images):
            path = world / "bitmaps" / "abc"[i % 3] / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(path)
            os.utime(path, ns=(round_, round_))
        reals = RealImages(config, open_images(config.data, (1, 4, 4), config.reading))
        found.append((reals.facts(net), reals.facts_of(reals.data.train), reals.images.listing_digest()))
    before, after = found
    assert before[2] == after[2]
    assert before[0].pop("fingerprint") != after[0].pop("fingerprint")
    assert before[1].pop("fingerprint") != after[1].pop("fingerprint")
    assert before[:2] == after[:2]


def test_a_time_is_per_image():
    import time

    found = milliseconds_per_image({"sleep": lambda _: time.sleep(0.02)}, 4, 1)
    assert 5 <= found["sleep"] < 15
