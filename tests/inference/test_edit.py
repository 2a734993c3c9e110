"""Edits of the noise: what they keep, what they change, what they refuse."""

import pytest
import torch
from PIL import Image

from biflow.data.images import to_pixels
from biflow.data.mask import to_mask
from biflow.data.randomness import content_keys, normal_for
from biflow.errors import InputError
from biflow.inference import edit as editing
from biflow.inference.edit import mask_patches, mix_noise, slerp, swap_noise
from biflow.models.model import new_model
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline
from tests.builders import tiny_config, tiny_images, tiny_model

LEFT = torch.tensor([[True, True, False, False]]).expand(4, 4)


@pytest.fixture
def pipe():
    return Pipeline(tiny_model())


@pytest.fixture
def images():
    return tiny_images(5).images


LABELS = [0, 1, 2, 3, 0]  # the null label among them


@pytest.fixture
def seen(monkeypatch):
    """The noise that inpainting composes, with the noise it is made of, call by call."""
    calls = []

    def record(z, fresh, masked):
        calls.append((z, fresh, masked, swap_noise(z, fresh, masked)))
        return calls[-1][-1]

    monkeypatch.setattr(editing, "swap_noise", record)
    return calls


def test_a_patch_is_masked_if_any_of_its_pixels_is():
    for i in range(16):
        mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        mask.view(-1)[i] = True
        expected = patchify(mask.float(), 2).any(dim=2)
        assert expected.sum() == 1
        assert torch.equal(mask_patches(mask, 2), expected)


def test_a_patch_of_latents_covers_as_many_pixels_more():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 7, 3] = True
    assert mask_patches(mask, 2).tolist() == [[False, False, True, False]]


def test_known_noise_is_kept_and_masked_noise_is_new():
    z, fresh = torch.randn(2, 2, 4, 3)
    masked = torch.tensor([[True, False, False, True], [False, False, True, False]])
    mixed = swap_noise(z, fresh, masked)
    assert torch.equal(mixed[~masked], z[~masked])
    assert torch.equal(mixed[masked], fresh[masked])


def test_inpainting_keeps_the_noise_that_the_composed_image_has_at_known_patches(pipe, images, seen):
    pipe.inpaint(images, LEFT, LABELS, proposals=2, rounds=3)
    assert len(seen) == 6
    for z, fresh, masked, mixed in seen:
        assert masked.tolist() == [[True, False, True, False]] * 5
        assert torch.equal(mixed[~masked], z[~masked])
        assert torch.equal(mixed[masked], fresh[masked])
    assert torch.equal(seen[0][1], seen[2][1])  # the same new noise in every round
    assert not torch.equal(seen[0][1], seen[3][1])  # another for the next proposal


@pytest.mark.parametrize("start", ["draw", "grey"])
def test_masked_pixels_are_never_read(pipe, images, start):
    other = torch.where(LEFT, 255 - images, images)
    found, same = (pipe.inpaint(each, LEFT, LABELS, start=start, proposals=2) for each in (images, other))
    assert torch.equal(found.pixels, same.pixels)


def test_known_pixels_are_pasted_exactly_by_default(pipe, images):
    ragged = torch.zeros(4, 4, dtype=torch.bool)
    ragged[1, 1:3] = True  # cuts through two patches
    pasted = pipe.inpaint(images, ragged, LABELS).pixels
    bare = pipe.inpaint(images, ragged, LABELS, paste=False).pixels
    assert torch.equal(pasted[..., ~ragged], images[:, None].expand_as(pasted)[..., ~ragged])
    assert not torch.equal(bare[..., ~ragged], images[:, None].expand_as(bare)[..., ~ragged])
    assert (pasted[..., ragged] != images[:, None].expand_as(pasted)[..., ragged]).any()


def test_proposals_differ_and_the_likeliest_comes_first(pipe, images):
    found = pipe.inpaint(images, LEFT, LABELS, proposals=5)
    assert (found.nats[:, :-1] > found.nats[:, 1:]).all()
    for i in range(len(images)):
        assert len({each.tobytes() for each in found.images(i)}) == 5


def test_the_log_densities_are_those_of_the_results_under_one_noise(pipe, images):
    """A flow without training noise has none to draw, so its own likelihood is the ranking's."""
    pipe = Pipeline(tiny_model(tiny_config(noise_std=0.0)))
    found = pipe.inpaint(images, LEFT, LABELS, proposals=3)
    for i in range(3):
        torch.testing.assert_close(pipe.log_prob(found.pixels[:, i], LABELS, noise="training").nats, found.nats[:, i])


def test_ranking_puts_nan_last():
    pixels = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1, 1)
    found = editing.ranked(pixels, torch.tensor([[torch.nan, 1.0, 2.0]]))
    assert found.pixels.flatten().tolist() == [2, 1, 0]


def test_a_full_mask_gives_samples_independent_of_the_image(pipe):
    everything, black = torch.ones(4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    made = [pipe.inpaint(each, everything, [1]).pixels for each in (black, black + 200)]
    assert torch.equal(*made)


@pytest.mark.parametrize("method", ["reverse", "sequential"])
def test_a_class_to_itself_is_the_reconstruction(pipe, images, method):
    same = pipe.reclass(images, LABELS, LABELS, method=method)
    assert same == pipe.reconstruct(images, LABELS, method=method)
    assert same != pipe.reclass(images, LABELS, [1] * 5, method=method)


def test_exact_reconstruction_of_a_flow_without_noise_is_the_image():
    pipe, images = Pipeline(tiny_model(tiny_config(noise_std=0.0))), tiny_images(5).images
    back = to_pixels(pipe.reconstruct(images, LABELS, method="sequential"))
    assert (back.int() - images.int()).abs().max() <= 1


def test_the_flow_is_given_the_image_with_its_training_noise(images):
    """A fresh flow is the identity, so the noise can be looked at."""
    pipe = Pipeline(new_model(tiny_config(), tuple("abc")))
    many = images[:1].expand(200, -1, -1, -1) * torch.ones(200, 1, 1, 1, dtype=torch.uint8)
    many[:, 0, 0, 0] = torch.arange(200)  # images of their own, so noise of their own
    off = pipe.encode(many) - patchify(pipe.model.codec.encode(many), 2)
    assert abs(off.std().item() - 0.2) < 0.01
    assert abs(off.mean().item()) < 0.02


def test_noise_and_back_by_hand_is_the_reconstruction(pipe, images):
    assert pipe.decode(pipe.encode(images, LABELS), LABELS) == pipe.reconstruct(images, LABELS)


def test_results_do_not_depend_on_the_batch(pipe, images):
    options = {"proposals": 2, "seed": 4}
    together = pipe.inpaint(images, LEFT, LABELS, **options).pixels
    alone = pipe.inpaint(images[3:4], LEFT, LABELS[3:4], **options).pixels
    assert (together[3].int() - alone[0].int()).abs().max() <= 1
    varied, one = pipe.vary(images, LABELS, num=2).pixels, pipe.vary(images[3:4], LABELS[3:4], num=2).pixels
    assert (varied[3].int() - one[0].int()).abs().max() <= 1


EDITS = {
    "inpaint": lambda pipe, images, **way: pipe.inpaint(images, LEFT, LABELS, proposals=2, **way).pixels,
    "reclass": lambda pipe, images, **way: to_pixels(pipe.reclass(images, LABELS, [2] * 5, **way)),
    "interpolate": lambda pipe, images, **way: (
        pipe.interpolate(images, images.flip(0), labels=(LABELS, LABELS), steps=3, **way).pixels
    ),
    "vary": lambda pipe, images, **way: pipe.vary(images, LABELS, num=2, **way).pixels,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_same_seed_same_results_and_another_seed_others(pipe, images, edit):
    assert torch.equal(edit(pipe, images, seed=2), edit(pipe, images, seed=2))
    assert not torch.equal(edit(pipe, images, seed=2), edit(pipe, images, seed=3))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_guidance_and_method_are_followed(pipe, images, edit):
    base = edit(pipe, images)
    assert not torch.equal(base, edit(pipe, images, guidance=2.0))
    assert not torch.equal(base, edit(pipe, images, method="sequential"))


def test_the_arc_ends_where_its_ends_are_and_keeps_the_norm():
    first, last = torch.randn(2, 50, 16, 4, dtype=torch.float64)
    assert torch.equal(slerp(first, last, 0.0), first)
    assert torch.equal(slerp(first, last, 1.0), last)
    last *= first.flatten(1).norm(dim=1).view(-1, 1, 1) / last.flatten(1).norm(dim=1).view(-1, 1, 1)
    for share in (0.1, 0.5, 0.8):
        torch.testing.assert_close(
            slerp(first, last, share).flatten(1).norm(dim=1), first.flatten(1).norm(dim=1), rtol=1e-9, atol=0
        )


def test_equal_ends_can_be_interpolated():
    z = torch.randn(2, 4, 4)
    torch.testing.assert_close(slerp(z, z.clone(), 0.3), z)


def test_an_interpolation_begins_and_ends_with_the_reconstructions(pipe, images):
    labels = ([0, 1, 2, 0, 1], [2, 2, 2, 2, 2])
    found = pipe.interpolate(images, images.flip(0), labels=labels, steps=4).pixels
    assert torch.equal(found[:, 0], to_pixels(pipe.reconstruct(images, labels[0])))
    assert torch.equal(found[:, -1], to_pixels(pipe.reconstruct(images.flip(0), labels[1])))


def test_an_interpolation_changes_its_label_at_the_midpoint(pipe, images):
    first, last = pipe.encode(images[:1], [0]), pipe.encode(images[1:2], [2])
    found = pipe.interpolate(images[:1], images[1:2], labels=([0], [2]), steps=5).images()
    for i, label in enumerate([0, 0, 2, 2, 2]):
        z = slerp(first, last, i / 4)
        assert [found[i]] == pipe.decode(z, [label])
        assert [found[i]] != pipe.decode(z, [2 - label])


def test_an_interpolation_is_spherical_in_units_of_the_prior(images):
    """A volume-preserving flow has its own prior variance; slerp works on standard normal noise."""
    config = tiny_config(flow=tiny_config().flow.model_copy(update={"volume_preserving": True}))
    pipe = Pipeline(tiny_model(config))
    scale = torch.rand(4, 4) + 0.5
    pipe.model.flow.prior_variance.copy_(scale**2)
    first, last = (pipe.encode(each, [0]) for each in (images[:1], images[1:2]))
    expected = pipe.decode(slerp(first / scale, last / scale, 0.5) * scale, [0])
    assert pipe.interpolate(images[:1], images[1:2], labels=([0], [0]), steps=3).images()[1] == expected[0]


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.8, 1.0])
def test_mixed_noise_keeps_the_variance_of_the_prior(strength):
    z, fresh = torch.randn(2, 1000, 16, 4, generator=torch.Generator().manual_seed(0))
    mixed = mix_noise(z, fresh, strength)
    assert abs(mixed.var().item() - 1) < 0.02
    assert abs((mixed * z).mean().item() - (1 - strength**2) ** 0.5) < 0.02


def test_strength_0_is_the_reconstruction_and_strength_1_forgets_the_image(pipe, images):
    plain = to_pixels(pipe.reconstruct(images, LABELS))
    assert torch.equal(pipe.vary(images, LABELS, strength=0, num=2).pixels, plain[:, None].expand(-1, 2, -1, -1, -1))
    z = pipe.encode(images, LABELS)
    assert torch.equal(mix_noise(z, z.flip(0), 1.0), z.flip(0))


def test_at_strength_1_the_noise_is_drawn_from_the_prior_for_the_images_key_alone(pipe, images):
    """With a prior variance other than 1, as in a volume-preserving flow."""
    scale = torch.rand(4, 4) + 0.5
    pipe.model.flow.prior_variance.copy_(scale**2)
    keys = content_keys(images)
    drawn = [normal_for(keys, (4, 4), "vary", 5, i) for i in range(2)]
    wanted = torch.stack([pipe.decode_pixels(noise * scale, torch.tensor(LABELS)) for noise in drawn], dim=1)
    assert torch.equal(pipe.vary(images, LABELS, strength=1, num=2, seed=5).pixels, wanted)
    fresh = [pipe._editor(seed=5).fresh(keys, "vary", i) for i in range(2)]
    torch.testing.assert_close(fresh, [noise * scale for noise in drawn])


def test_every_image_has_its_own_noise(images):
    """A fresh flow is the identity, so the noise can be looked at."""
    pipe = Pipeline(new_model(tiny_config(), tuple("abc")))
    z = pipe.encode(images, LABELS)
    alone = [pipe.encode(images[i : i + 1], LABELS[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(z, torch.cat(alone))
    added = z - patchify(pipe.model.codec.encode(images), 2)
    fresh = pipe._editor().fresh(content_keys(images), "vary", 0)
    for noise in (added, fresh):
        apart = torch.pdist(noise.flatten(1))
        assert apart.min() > 2 * noise.std()  # of 16 values each; equal noise lies at 0, independent noise near 5.7


def test_variations_differ_from_each_other(pipe, images):
    assert len({each.tobytes() for each in pipe.vary(images, LABELS, strength=0.5, num=5).images()}) == 5


def test_without_labels_images_are_of_no_class(pipe, images):
    assert torch.equal(pipe.encode(images), pipe.encode(images, [3] * 5))
    assert not torch.equal(pipe.encode(images), pipe.encode(images, [0] * 5))


def test_an_unconditional_model_is_edited_without_labels(images):
    pipe = Pipeline(tiny_model(tiny_config(num_classes=0)))
    assert pipe.inpaint(images, LEFT).pixels.shape == (5, 4, 1, 4, 4)
    assert pipe.vary(images).pixels.shape == (5, 6, 1, 4, 4)


def test_latents_are_edited_through_their_codec(autoencoder):
    pipe = Pipeline(tiny_model(tiny_config(codec=f"vae:{autoencoder}", channels=4)))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[:3, :3] = True
    made = pipe.inpaint(images, corner, [0, 1], proposals=2).pixels
    assert made.shape == (2, 2, 3, 8, 8)
    assert torch.equal(made[..., ~corner], images[:, None].expand_as(made)[..., ~corner])
    assert (made[..., corner] != images[:, None].expand_as(made)[..., corner]).any()


def test_an_image_is_a_mask_white_where_to_resample(pipe, images):
    picture = Image.new("RGB", (4, 4))
    picture.paste("white", (0, 0, 2, 4))
    assert torch.equal(to_mask(picture, images), LEFT.expand(5, 1, 4, 4))
    assert torch.equal(pipe.inpaint(images, picture, LABELS).pixels, pipe.inpaint(images, LEFT, LABELS).pixels)


def test_every_image_may_have_its_own_mask(pipe, images):
    masks = torch.stack([LEFT, ~LEFT, LEFT, LEFT, LEFT])
    made = pipe.inpaint(images, masks, LABELS).pixels
    assert torch.equal(made[0], pipe.inpaint(images[:1], LEFT, LABELS[:1]).pixels[0])
    assert torch.equal(made[1][..., LEFT], images[1].expand(4, -1, -1, -1)[..., LEFT])


BAD = {
    "black mask": (lambda p, x: p.inpaint(x, LEFT & ~LEFT), "black all over"),
    "one black mask": (lambda p, x: p.inpaint(x, torch.stack([LEFT] * 4 + [LEFT & ~LEFT])), "black all over"),
    "mask of another size": (lambda p, x: p.inpaint(x, torch.ones(4, 5) > 0), "size, 4x4 pixels.*; got 5x4"),
    "masks of another number": (lambda p, x: p.inpaint(x, torch.ones(3, 4, 4) > 0), r"got shape \(3, 4, 4\)"),
    "mask of numbers": (lambda p, x: p.inpaint(x, torch.ones(4, 4)), "bool tensor.*; got a tensor of torch.float32"),
    "mask that is a path": (lambda p, x: p.inpaint(x, "mask.png"), "got a str"),
    "no proposal": (lambda p, x: p.inpaint(x, LEFT, proposals=0), "proposals to be a whole number, 1 or more; got 0"),
    "no round": (lambda p, x: p.inpaint(x, LEFT, rounds=0), "rounds to be a whole number"),
    "unknown start": (
        lambda p, x: p.inpaint(x, LEFT, start="black"),
        "Unknown start 'black'; choose one of draw, grey",
    ),
    "too few labels": (lambda p, x: p.inpaint(x, LEFT, [1]), "one label for each of 5 images; got 1"),
    "unknown label": (lambda p, x: p.reclass(x, LABELS, [9] * 5), "labels from 0 to 2"),
    "too few targets": (lambda p, x: p.reclass(x, LABELS, [1]), "one label for each of 5 images; got 1"),
    "one step": (lambda p, x: p.interpolate(x, x, steps=1), "steps to be a whole number, 2 or more"),
    "unequal ends": (lambda p, x: p.interpolate(x, x[:2]), "as many last images as first images; got 2 for 5"),
    "strength too large": (lambda p, x: p.vary(x, strength=1.1), "strength to be a number from 0 to 1; got 1.1"),
    "strength below 0": (lambda p, x: p.vary(x, strength=-0.1), "strength to be a number"),
    "strength that is no number": (lambda p, x: p.vary(x, strength=float("nan")), "strength to be a number"),
    "no variation": (lambda p, x: p.vary(x, num=0), "num to be a whole number"),
    "half a seed": (lambda p, x: p.vary(x, seed=0.5), "seed to be a whole number"),
    "unknown method": (lambda p, x: p.vary(x, method="revers"), "did you mean reverse"),
    "images of another size": (lambda p, x: p.encode(x[..., :2]), r"got \(5, 1, 4, 2\)"),
    "noise of another shape": (lambda p, _: p.decode(torch.zeros(1, 3, 4), [0]), r"shape \(1, 4, 4\).*got \(1, 3, 4\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_says_what_was_expected(pipe, images, call, message):
    with pytest.raises(InputError, match=message):
        call(pipe, images)
