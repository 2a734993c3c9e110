"""Every example runs, on models and folders that are tiny."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import (
    cifar10,
    classify_and_rank,
    emoji,
    fashion_mnist,
    make_folder,
    outliers,
    own_loss_or_sampler,
    sample_and_save,
    train_on_a_folder,
)
from PIL import Image

from biflow import Guidance, OnePass
from biflow.checkpoint import save_model
from biflow.config import ReadingConfig, ReverseConfig
from biflow.config.base import to_yaml
from biflow.data.images import to_pil
from biflow.data.open import open_images
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_images, tiny_model, tiny_run
from tests.data.test_arrays import idx as write_idx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model that was never trained."""
    folder = tmp_path_factory.mktemp("examples") / "model"
    config = tiny_config(reverse=ReverseConfig(layers=1, width=16, head_width=8, guidance="trained"))
    save_model(tiny_model(config), folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """4x4 images in a sub-folder for each of three classes."""
    folder, images = tmp_path_factory.mktemp("examples") / "photos", tiny_images(30)
    for place, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        home = folder / "abc"[label]
        home.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(home / f"{place}.png")
    return folder


def test_every_example_is_run_here_and_says_how_it_is_called():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    with_models = (classify_and_rank, own_loss_or_sampler, sample_and_save, train_on_a_folder)
    run = (cifar10, emoji, fashion_mnist, make_folder, outliers, *with_models)
    assert scripts == {module.__name__.removeprefix("examples.") for module in run}
    for name in scripts:
        assert f"python examples/{name}.py" in (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")


def test_fashion_mnist_is_packed_with_the_names_of_its_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(10, dtype=np.uint8))
    fashion_mnist.main([str(tmp_path / "out"), "--source", str(tmp_path)])
    split = open_images(f"npz:{tmp_path / 'out'}", (1, 28, 28), ReadingConfig())
    assert torch.equal(split.test.read(torch.arange(10))[:, 0], torch.from_numpy(images))
    assert split.train.class_names[9] == "Ankle boot"


def test_cifar10_is_packed_from_its_binary_version(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    rows = np.concatenate([np.array([[1], [0]], np.uint8), pixels.reshape(2, -1)], axis=1)
    for file in (*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]):
        rows.tofile(tmp_path / file)
    (tmp_path / cifar10.NAMES).write_text("airplane\nautomobile\n\n")
    cifar10.main([str(tmp_path), str(tmp_path / "out")])
    split = open_images(f"npz:{tmp_path / 'out'}", cifar10.SHAPE, ReadingConfig())
    assert (len(split.train), len(split.test)) == (10, 2)
    assert split.test.labels.tolist() == [1, 0]
    assert split.test.class_names == ("airplane", "automobile")
    assert torch.equal(split.test.read(torch.arange(2)), torch.from_numpy(pixels))


def test_cifar10_is_packed_from_folders(tmp_path):
    for home in ("train/cat", "test/cat"):
        (tmp_path / "images" / home).mkdir(parents=True)
        to_pil(torch.full((3, 32, 32), 7, dtype=torch.uint8)).save(tmp_path / "images" / home / "0.png")
    cifar10.main([str(tmp_path / "images"), str(tmp_path / "out")])
    split = open_images(f"npz:{tmp_path / 'out'}", cifar10.SHAPE, ReadingConfig())
    assert split.test.read(torch.tensor([0])).unique().tolist() == [7]


def test_emoji_are_sorted_by_category_without_skin_tones(tmp_path):
    package, out = tmp_path / "package", tmp_path / "out"
    (package / emoji.IMAGES).mkdir(parents=True)
    listed = [("Food & Drink", "pizza", True), ("Component", "tone", True), ("Flags", "no_image", False)]
    content = [
        {"category": kind, "short_name": name, "image": f"{name}.png", "has_img_twitter": has}
        for kind, name, has in listed
    ]
    (package / "emoji.json").write_text(json.dumps(content))
    for _, name, _ in listed[:2]:
        to_pil(torch.zeros(3, 4, 4, dtype=torch.uint8)).save(package / emoji.IMAGES / f"{name}.png")
    emoji.main([str(package), str(out)])
    assert [path.relative_to(out).as_posix() for path in out.rglob("*.png")] == ["food-and-drink/pizza.png"]


def test_make_folder_writes_a_sub_folder_for_each_class(tmp_path):
    make_folder.main([str(tmp_path), "--new", "3"])
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == list("0123456789")
    assert len(list(tmp_path.glob("digits/*/*.png"))) == 1437
    assert len(list(tmp_path.glob("new/*.png"))) == 3


def test_outliers_writes_both_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["outliers.py", str(tmp_path / "out")])
    outliers.main()
    assert len(list(tmp_path.glob("out/digits/*.png"))) == 360
    assert len(list(tmp_path.glob("out/sevens/not_*.png"))) == 4


def test_train_on_a_folder_gives_a_model_that_knows_its_classes(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(to_yaml(tiny_run()))
    train_on_a_folder.main([str(photos), str(tmp_path / "run"), "--recipe", str(recipe), "--set", "fit_flow.steps=2"])
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipe.class_names == ("a", "b", "c")


def test_sample_and_save_writes_one_row_for_each_way(model, tmp_path):
    sample_and_save.main([str(model), str(tmp_path)])
    sizes = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            sizes[path.stem] = picture.size
    assert sizes == dict.fromkeys(sample_and_save.WAYS, (3 * 4, 4))


def test_exact_ways_of_the_example_agree(model):
    pipe = Pipeline.from_pretrained(model)
    (one, strength), (other, _) = (sample_and_save.WAYS[name] for name in ("sequential", "jacobi"))
    rows = [pipe.sample_pixels([0, 1, 2], method=way, guidance=strength).int() for way in (one, other)]
    assert (rows[0] - rows[1]).abs().max() <= 1


def test_classify_and_rank_prints_every_image_the_least_likely_first(model, photos, capsys):
    classify_and_rank.main([str(model), str(photos)])
    bits = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(bits) == 30
    assert bits == sorted(bits, reverse=True)


def test_a_sampler_of_ones_own_draws(model, tmp_path):
    own_loss_or_sampler.main([str(model), str(tmp_path / "own.png")])
    assert (tmp_path / "own.png").is_file()


def test_best_of_lands_nearer_to_its_noise_than_one_draw(model):
    loaded = Pipeline.from_pretrained(model).model
    z, labels = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.long)
    one = OnePass()(loaded, z, labels, Guidance()).x
    best = own_loss_or_sampler.BestOf(draws=1)(loaded, z, labels, Guidance()).x
    assert torch.equal(one, best)
    several = own_loss_or_sampler.BestOf(draws=4)
    alone = several(loaded, z[:1], labels[:1], Guidance()).x
    assert torch.allclose(several(loaded, z, labels, Guidance()).x[:1], alone, atol=1e-5)


def test_a_distance_of_ones_own_trains(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from biflow.config import DistanceConfig
    from biflow.features.perceptual import make_distance
    from biflow.losses.perceptual import WHOLE

    distance = make_distance(DistanceConfig(kind="module", network="own_loss_or_sampler:Edges"))
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    assert distance(images, images.detach(), WHOLE).abs().max() == 0
    distance(images, torch.zeros_like(images), WHOLE).sum().backward()
    assert images.grad is not None
    sys.modules.pop("own_loss_or_sampler", None)
