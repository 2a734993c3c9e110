import pytest
import torch

from biflow.data.augment import GUIDED_SHARE, add_noise, draw_guidance, drop_labels
from biflow.data.datasets import ImageSet, digits, indices_at, load_data, with_shifts
from biflow.data.randomness import normal_for, seeded_weights, stream, uniform_for
from biflow.errors import InputError


def test_digits_have_360_stratified_test_images_apart_from_training():
    split = digits()
    assert (len(split.train), len(split.test)) == (1437, 360)
    assert split.train.images.dtype == torch.uint8
    assert split.train.images.shape[1:] == (1, 8, 8)
    assert split.test.labels.bincount().min() >= 34
    assert split.train.images.unique().numel() == 17
    distances = torch.cdist(split.test.images.flatten(1).float(), split.train.images.flatten(1).float())
    assert distances.min() > 0


def test_the_digits_split_never_changes():
    split = digits()
    assert split.test.labels[:12].tolist() == digits().test.labels[:12].tolist()
    checksum = (split.test.images.long().sum((1, 2, 3)) * torch.arange(360)).sum().item()
    assert checksum == DIGITS_CHECKSUM


DIGITS_CHECKSUM = 321571851


def test_unknown_data_names_the_nearest():
    with pytest.raises(InputError, match="did you mean digits"):
        load_data("digit")


def test_an_epoch_shows_every_image_once():
    seen = torch.cat([indices_at(step, 0, batch_size=5, num_images=20) for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20))


def test_epochs_follow_each_other_without_a_gap():
    steps = [indices_at(step, 0, batch_size=6, num_images=10) for step in range(5)]
    assert torch.cat(steps).bincount().tolist() == [3] * 10


def test_order_differs_between_epochs_and_seeds():
    def order(step: int, seed: int) -> list[int]:
        return indices_at(step, seed, batch_size=20, num_images=20).tolist()

    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert order(7, 3) == order(7, 3)


def test_noise_of_an_image_does_not_depend_on_the_batch():
    batch = normal_for([4, 9, 2], (3, 3), "seed", 1)
    alone = normal_for([9], (3, 3), "seed", 1)
    assert torch.equal(batch[1], alone[0])


def test_streams_of_different_keys_differ():
    keys = [(1 + 2**32,), (1,), (0, 1), (1, 0), (0, "1"), ("0", 1), (0, 1, 0), (10,), (1, 10), (11, 0)]
    draws = {stream(*key).random() for key in keys}
    assert len(draws) == len(keys)


def test_seeded_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> list[float]:
        torch.rand(seed + 1)  # earlier draws do not matter
        with seeded_weights(seed):
            return torch.nn.Linear(2, 2).weight.flatten().tolist()

    assert weights(3) == weights(3)
    assert weights(3) != weights(4)


def test_noise_has_the_stated_standard_deviation():
    noisy = add_noise(torch.zeros(200, 1, 8, 8), range(200), 0.3, "test")
    assert abs(noisy.std().item() - 0.3) < 0.01
    assert abs(noisy.mean().item()) < 0.01


def test_labels_are_dropped_at_the_stated_share():
    labels = drop_labels(torch.zeros(4000, dtype=torch.long), range(4000), 0.1, 7, "test")
    assert set(labels.unique().tolist()) == {0, 7}
    assert abs((labels == 7).float().mean().item() - 0.1) < 0.02


def test_guidance_is_sampled_for_a_quarter_of_the_labelled_images_and_mostly_weak():
    labels = torch.arange(4000) % 4
    strengths = draw_guidance(labels, range(4000), 3.0, 3, "test")
    assert (strengths[labels == 3] == 0).all()
    drawn = strengths[labels != 3]
    assert abs((drawn > 0).float().mean().item() - GUIDED_SHARE) < 0.03
    assert drawn.max() <= 3
    assert abs(drawn[drawn > 0].log1p().mean().item() - torch.tensor(4.0).log().item() / 2) < 0.06


def test_no_label_is_dropped_at_share_zero():
    labels = torch.arange(50)
    assert torch.equal(drop_labels(labels, range(50), 0.0, 99, "test"), labels)


def test_shifts_include_the_image_itself_and_move_it_by_one_pixel():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 1, 1] = 255
    shifted = with_shifts(ImageSet(image, torch.tensor([2]), ("a", "b", "c")))
    assert len(shifted) == 9
    assert shifted.labels.tolist() == [2] * 9
    positions = {tuple(img[0].nonzero()[0].tolist()) for img in shifted.images}
    assert positions == {(i, j) for i in range(3) for j in range(3)}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_random_numbers_of_an_image_depend_only_on_its_keys(size):
    for draw in (normal_for, uniform_for):
        batch = draw(range(50), (size,), "what", 3)
        assert torch.equal(draw([17], (size,), "what", 3)[0], batch[17])
        assert torch.equal(draw([2**64 - 1, 5], (size,), "what", 3)[1], batch[5])
        assert not torch.equal(draw([17], (size,), "what", 4)[0], batch[17])
        assert len(batch[:, 0].unique()) == 50


def test_numbers_are_the_same_on_any_number_of_threads():
    one = normal_for(range(300), (3, 16, 16), "threads")
    torch.set_num_threads(3)
    try:
        assert torch.equal(normal_for(range(300), (3, 16, 16), "threads"), one)
    finally:
        torch.set_num_threads(1)


def test_normal_numbers_are_normal_and_independent():
    drawn = normal_for(range(4000), (251,), "normal").double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert drawn.pow(power).mean().item() == pytest.approx(moment, abs=0.03)
    for cut, share in ((1.0, 0.31731), (2.0, 0.04550), (4.0, 6.334e-5)):
        assert (drawn.abs() > cut).double().mean().item() == pytest.approx(share, abs=0.002, rel=0.5)
    correlations = torch.corrcoef(drawn[:, :40].T) - torch.eye(40)
    assert correlations.abs().max() < 6 / 4000**0.5
    assert torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1].abs() < 0.005


def test_uniform_numbers_fill_their_range_evenly():
    drawn = uniform_for(range(100_000), (), "uniform").double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = drawn.histc(20, 0, 1)
    assert (counts - 5000).abs().max() < 5 * 5000**0.5
