import torch

from biflow.data.augment import add_noise
from biflow.data.datasets import ImageSet
from biflow.inference.probe import all_layers, mean_features, probe
from biflow.models.codec import PixelCodec, training_noise
from biflow.models.patches import patchify
from tests.builders import tiny_config, tiny_flow, tiny_images, tiny_model


def bright_and_dark(count: int, seed: int) -> ImageSet:
    """Two classes that every layer can tell apart by their mean."""
    generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 1, 4, 4), generator=generator) + 180 * labels.view(-1, 1, 1, 1)
    return ImageSet(images.to(torch.uint8), labels, ("dark", "bright"))


def test_every_layer_is_probed_and_one_that_sees_the_class_finds_it():
    found = probe(tiny_model(), bright_and_dark(80, 0), bright_and_dark(40, 1))
    assert list(found) == [(block, layer) for block in (1, 2, 3) for layer in (1, 2)]
    assert found[1, 1] == 1


def test_random_labels_cannot_be_probed():
    train, test = tiny_images(300), tiny_images(300, seed=1)
    assert max(probe(tiny_model(), train, test).values()) < 0.5


def test_layers_follow_blocks_of_different_depth():
    flow = tiny_flow(flow=tiny_config().flow.model_copy(update={"layers": (2, 1, 3)}), reverse=None)
    assert all_layers(flow) == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (3, 3)]


def test_features_are_the_mean_over_patches_of_noisy_images_without_label():
    model, images = tiny_model(), tiny_images(5)
    std, bin_width = training_noise(model.config)
    noisy = add_noise(PixelCodec().encode(images.images), range(5), std, "probe", 0, bin_width=bin_width)
    expected = model.flow(patchify(noisy, 2), torch.full((5,), 3), [(2, 1)]).features[2, 1].mean(1)
    found = mean_features(model, images, [(2, 1)], seed=0)
    torch.testing.assert_close(found[2, 1], expected)
