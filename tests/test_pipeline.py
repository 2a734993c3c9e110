import numpy as np
import pytest
import torch
from PIL import Image

from biflow.checkpoint import TRAINING_FILE
from biflow.config import FlowConfig, ReverseConfig
from biflow.data.images import to_pil
from biflow.errors import InputError
from biflow.models.model import new_model
from biflow.models.patches import patchify
from biflow.pipeline import Pipeline
from biflow.sampling.denoise import score_denoise
from biflow.sampling.draw import REDRAWS
from biflow.sampling.guidance import Guidance
from biflow.sampling.samplers import SAMPLERS, Jacobi, Sequential
from tests.builders import NUM_CLASSES, tiny_config, tiny_images, tiny_model

METHODS = [*SAMPLERS]


@pytest.fixture
def pipe():
    return Pipeline(tiny_model())


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_pil_images_of_the_models_size(pipe, method):
    images = pipe.sample([0, 1, 2], method=method)
    assert [image.size for image in images] == [(4, 4)] * 3
    assert images[0].mode == "L"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_same_seed_same_images_whatever_the_batch_size(pipe, method, batch_size):
    labels = [0, 1, 2, 0, 1, 2, 0]
    expected = pipe.sample_pixels(labels, method=method, guidance=0.5, seed=3)
    drawn = pipe.sample_pixels(labels, method=method, guidance=0.5, seed=3, batch_size=batch_size)
    assert torch.equal(drawn, expected)


def test_an_image_does_not_depend_on_those_after_it(pipe):
    assert torch.equal(pipe.sample_pixels([0, 1, 2])[:2], pipe.sample_pixels([0, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_seed_label_and_guidance_each_change_the_images(pipe, method):
    def drawn(label: int = 0, **options) -> torch.Tensor:
        return pipe.sample_pixels([label], method=method, **options)

    base = drawn()
    assert not torch.equal(base, drawn(seed=1))
    assert not torch.equal(base, drawn(label=1))
    assert not torch.equal(base, drawn(guidance=3.0))


def test_every_method_starts_from_the_same_noise_of_each_image():
    """A fresh flow is the identity, so the exact sample shows the noise that it started from."""
    config = tiny_config()
    pipe = Pipeline(new_model(config, tuple("abc")))
    noise = pipe.model.to_latents(pipe.noise([0, 1], seed=5))
    expected = pipe.model.codec.decode(noise * (1 - config.noise_std**2))
    assert torch.equal(pipe.sample_pixels([0, 1], method="sequential", seed=5), expected)


def test_images_that_are_not_finite_are_counted():
    pipe = Pipeline(tiny_model())
    with torch.no_grad():
        pipe.model.reverse.project_out.bias.fill_(torch.nan)
    with pytest.warns(UserWarning, match="2 of 2 images"):
        pipe.sample([0, 1])


def test_an_image_that_is_not_finite_is_drawn_again_from_the_noise_of_the_next_attempt(pipe):
    """The model fails for one noise of one image, and then for all that another image is ever drawn from."""
    labels, place, hopeless = torch.arange(8) % NUM_CLASSES, 5, 2
    fine = pipe.sample_pixels(labels, seed=3)
    again = pipe.decode_pixels(pipe.engine.noise([place], 3, 1), labels[place : place + 1])
    failing = pipe.noise([place], 3)

    def fail(_, arguments, drawn):
        hit = (arguments[0][:, None] == failing).flatten(2).all(dim=2).any(dim=1)
        return drawn._replace(image=drawn.image.masked_fill(hit[:, None, None], torch.nan))

    pipe.model.reverse.register_forward_hook(fail)
    drawn = pipe.draw(labels, seed=3, batch_size=4, redraw=True)
    assert (drawn.broken, drawn.left) == (1, 0)
    assert torch.equal(drawn.pixels[place], again[0])
    others = torch.arange(8) != place
    assert torch.equal(drawn.pixels[others], fine[others])
    assert not torch.equal(again[0], fine[place])
    plain = pipe.draw(labels, seed=3, batch_size=4)
    assert (plain.broken, plain.left) == (1, 1)
    failing = torch.cat([pipe.engine.noise([hopeless], 3, attempt) for attempt in range(1 + REDRAWS)])
    stuck = pipe.draw(labels, seed=3, redraw=True)
    assert (stuck.broken, stuck.left) == (1, 1)


def test_samples_are_certified_by_how_far_the_flow_carries_them_from_their_noise():
    """A flow of fresh weights is the identity: the distance is that of the pixels from the noise."""
    model = new_model(tiny_config(), tuple("abc"))
    pipe, labels = Pipeline(model), [0, 1, 2, 0, 1]
    z = pipe.noise(range(5), seed=7)
    pixels = pipe.model.codec.decode(pipe.model.to_latents(z / 4))
    found = pipe.certify(pixels, labels, seed=7)
    landed = patchify(pipe.model.codec.encode(pixels), 2)
    torch.testing.assert_close(found, (landed - z).square().mean(dim=(1, 2)).sqrt())
    torch.testing.assert_close(pipe.certify([to_pil(each) for each in pixels], labels, seed=7), found)
    assert not torch.allclose(pipe.certify(pixels, labels, seed=8), found)


def test_an_exact_inverse_without_noise_is_certified_near_zero():
    """Only the rounding to grey levels is left."""
    pipe = Pipeline(tiny_model(tiny_config(noise_std=0.0)))
    pipe.model.flow.prior_variance.mul_(1e-2)  # keeps the samples within the range of pixels
    pixels = pipe.sample_pixels([0, 1, 2], method="sequential", seed=3)
    exact, other = pipe.certify(pixels, [0, 1, 2], seed=3), pipe.certify(pixels, [0, 1, 2], seed=4)
    assert exact.max() < 0.05  # half a grey level is 0.039 of this noise
    assert exact.max() < other.min() / 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 4, 4), r"uint8 images \(N, P, H, W\); got \(2, 1, 4, 4\) torch.float32"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "one label for each of 3 images; got 2"),
        (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), r"shape \(N, 1, 4, 4\); got \(2, 1, 5, 5\)"),
        ([Image.new("L", (4, 4)), Image.new("L", (5, 4))], r"of 2 kinds \(L 4x4, L 5x4\)"),
        ([Image.new("RGBA", (4, 4))] * 2, r"of 1 kinds \(RGBA 4x4\)"),
        ([], r"PIL images in a list, or a uint8 tensor \(N, P, H, W\); got an empty list"),
        ([[[0]]] * 2, "PIL images in a list"),
        (Image.new("L", (4, 4)), "got a Image"),
    ],
)
def test_images_that_are_no_samples_of_the_model_are_refused(pipe, images, message):
    with pytest.raises(InputError, match=message):
        pipe.certify(images, [0, 1])


def test_integers_of_numpy_count_by_their_value(pipe):
    expected = pipe.sample_pixels([0, 1, 2], seed=5)
    found = pipe.sample_pixels(np.array([0, 1, 2]), seed=np.int64(5), batch_size=np.int32(2))
    assert torch.equal(found, expected)
    assert torch.equal(pipe.noise([0], seed=np.uint8(5)), pipe.noise([0], seed=5))


@pytest.mark.parametrize("one", [1, "b", np.int64(1), np.str_("b"), torch.tensor(1), np.array(1)])
def test_one_label_is_that_of_all_images(pipe, one):
    images = pipe.sample([0, 1], seed=1)
    assert torch.equal(pipe.log_prob(images, one).nats, pipe.log_prob(images, [1, 1]).nats)
    assert torch.equal(pipe.encode(images, one), pipe.encode(images, [1, 1]))
    assert pipe.reclass(images, one, one) == pipe.reclass(images, [1, 1], [1, 1])
    both = pipe.interpolate(images[:1], images[1:], labels=(one, 0), steps=2)
    assert torch.equal(both.pixels, pipe.interpolate(images[:1], images[1:], labels=([1], [0]), steps=2).pixels)
    assert pipe(one, seed=2).images == pipe.sample([1], seed=2)
    with pytest.raises(InputError, match=r"a list of one or more labels, .* such as \[0\]"):
        pipe.sample(one)


def test_scalars_of_numpy_count_by_their_value_wherever_a_number_is_asked_for(pipe):
    images = pipe.sample([0, 1], seed=1)
    two, third = np.int64(2), np.float32(0.5)
    assert torch.equal(pipe.log_prob(images, [0, 1], draws=two).nats, pipe.log_prob(images, [0, 1], draws=2).nats)
    assert torch.equal(pipe.classify(images, draws=two).logits, pipe.classify(images, draws=2).logits)
    found = pipe.vary(images, [0, 1], strength=third, num=two, guidance=third)
    assert torch.equal(found.pixels, pipe.vary(images, [0, 1], strength=0.5, num=2, guidance=0.5).pixels)
    mask = torch.ones(4, 4, dtype=torch.bool)
    found = pipe.inpaint(images, mask, [0, 1], proposals=two, rounds=two)
    assert torch.equal(found.pixels, pipe.inpaint(images, mask, [0, 1], proposals=2, rounds=2).pixels)
    assert pipe([0, 1], guidance_scale=np.float64(1.5), seed=two).images == pipe.sample([0, 1], guidance=0.5, seed=2)


def test_no_guidance_scale_is_no_guidance(pipe):
    assert pipe([0], guidance_scale=None, seed=1).images == pipe([0], guidance_scale=1, seed=1).images


@pytest.mark.parametrize("labels", [[0], 0, (0, 1, 2), "ab", {0, 1}, [[0], [1], [2]]])
def test_labels_of_an_interpolation_are_a_pair(pipe, labels):
    images = pipe.sample([0])
    with pytest.raises(InputError, match="labels as a pair, of the first and of the last images"):
        pipe.interpolate(images, images, labels=labels)


@pytest.mark.parametrize("z", [np.zeros((1, 4, 4)), [[0.0]], torch.zeros(1, 4, 5), None])
def test_noise_of_another_kind_is_refused(pipe, z):
    with pytest.raises(InputError, match=r"noise of shape \(1, 4, 4\), for the labels, as a tensor"):
        pipe.decode(z, [0])


@pytest.mark.parametrize("seed", [0.0, "x", None])
def test_certify_checks_its_seed_as_sample_does(pipe, seed):
    with pytest.raises(InputError, match="seed to be a whole number"):
        pipe.certify(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), [0], seed=seed)


def test_the_null_label_is_allowed(pipe):
    assert len(pipe.sample([3])) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([4], r"labels from 0 to 2, or 3 for no class; got 4"),
        ([-1], r"got -1"),
        ([], "one or more"),
        ([0.5], "labels, indices or names"),
        (["d"], "Unknown class 'd'; choose one of a, b, c"),
        ([True], "labels, indices or names"),
        ([[0], [1]], "one or more"),
    ],
)
def test_bad_labels_are_refused(pipe, labels, message):
    with pytest.raises(InputError, match=message):
        pipe.sample(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": -1}, "guidance to be a number, 0 or more"),
        ({"guidance": float("inf")}, "guidance to be a number, 0 or more"),
        ({"guidance": Guidance(1, annealed=True)}, "for the exact inverse"),
        ({"guidance": Guidance(1, on="shift")}, "for the exact inverse"),
        ({"guidance": Guidance(1, temperature=2)}, "for the exact inverse"),
        ({"guidance": "a"}, "guidance to be a number, 0 or more"),
        ({"seed": 1.5}, "seed to be a whole number"),
        ({"method": "revers"}, r"Unknown method 'revers'; did you mean reverse or refine\?"),
        ({"batch_size": 0}, "batch_size to be a whole number, 1"),
        ({"batch_size": 2.5}, "batch_size to be a whole number, 1"),
    ],
)
def test_bad_options_are_refused(pipe, options, message):
    with pytest.raises(InputError, match=message):
        pipe.sample([0], **options)


def test_a_flow_alone_says_how_it_can_be_sampled():
    pipe = Pipeline(tiny_model(tiny_config(reverse=None)))
    with pytest.raises(InputError, match="method sequential"):
        pipe.sample([0])
    assert len(pipe.sample([0], method="sequential")) == 1


def test_a_pipeline_survives_its_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.sample_pixels([0, 1]), pipe.sample_pixels([0, 1]))
    assert loaded.class_names == ("a", "b", "c")


def test_exact_methods_agree_within_a_grey_level(pipe):
    labels = [0, 1, 2, 3]
    exact = pipe.sample_pixels(labels, method="sequential", guidance=Guidance(1.0, annealed=True)).int()
    for method in ("jacobi", "gs-jacobi", "refine", Jacobi(tolerance=1e-6, groups=[1, 2, 3])):
        near = pipe.sample_pixels(labels, method=method, guidance=Guidance(1.0, annealed=True)).int()
        assert (near - exact).abs().max() <= 1


def test_groups_are_measured_once_for_every_guidance(pipe):
    first, other, again = (pipe.engine.prepare(Jacobi(groups="measured"), Guidance(w)) for w in (0.0, 1.0, 0.0))
    assert first is again
    assert first is not other
    assert len(first.groups) == 3


def test_the_score_step_can_be_left_out(pipe):
    plain, denoised = (pipe.sample_pixels([0, 1], method=Sequential(denoise=step)) for step in (0, 1))
    assert not torch.equal(plain, denoised)


def test_noise_follows_the_prior_of_a_volume_preserving_flow():
    flow = FlowConfig(blocks=3, layers=2, width=16, head_width=8, volume_preserving=True)
    pipe = Pipeline(tiny_model(tiny_config(flow=flow)))
    plain = pipe.noise([0, 1], seed=0)
    pipe.model.flow.prior_variance.fill_(4.0)
    assert torch.equal(pipe.noise([0, 1], seed=0), 2 * plain)


def test_noise_that_is_given_is_brought_to_the_prior_of_the_flow(pipe):
    scale = torch.rand(4, 4) + 0.5
    pipe.model.flow.prior_variance.copy_(scale**2)
    z, labels = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1])
    wanted = pipe.decode_pixels(z * scale, labels).float() / 255
    assert torch.equal(pipe(labels, latents=z, output_type="pt").images, wanted)
    drawn = pipe(labels, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert torch.equal(drawn, wanted)
    assert not torch.equal(wanted, pipe.decode_pixels(z, labels).float() / 255)


def test_log_prob_is_that_of_no_class_unless_told(pipe):
    pixels = tiny_images(5).images
    free = pipe.log_prob(pixels)
    assert torch.equal(free.nats, pipe.log_prob(pixels, [3] * 5).nats)
    assert not torch.equal(free.nats, pipe.log_prob(pixels, [0] * 5).nats)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), {}, r"shape \(N, 1, 4, 4\); got \(2, 1, 5, 5\)"),
        (torch.zeros(2, 1, 4, 4), {}, "uint8 images"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), {"labels": [0]}, "one label for each of 2 images; got 1"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), {"draws": 0}, "draws to be a whole number, 1"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            {"noise": "unifrom"},
            "Unknown noise 'unifrom'; did you mean uniform",
        ),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), {"average": "max"}, "Unknown average 'max'"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(pipe, pixels, options, message):
    with pytest.raises(InputError, match=message):
        pipe.log_prob(pixels, **options)


def test_an_unconditional_model_takes_no_labels_and_no_guidance_by_class():
    pipe = Pipeline(tiny_model(tiny_config(num_classes=0, reverse=None)))
    with pytest.raises(InputError, match="this model is unconditional; got 1"):
        pipe.sample([1], method="sequential")
    with pytest.raises(InputError, match="this one is unconditional"):
        pipe.sample([0], method="sequential", guidance=1.0)
    pipe = Pipeline(tiny_model(tiny_config(num_classes=0)))
    with pytest.raises(InputError, match="this one is unconditional"):
        pipe.sample([0], guidance=1.0)


def test_an_autoencoder_that_is_not_there_is_one_sentence():
    pytest.importorskip("diffusers")
    with pytest.raises(InputError, match="autoencoder 'nobody/nothing' of the codec"):
        Pipeline(tiny_model(tiny_config(codec="vae:nobody/nothing")))


def test_a_model_of_latents_samples_images_of_pixels(autoencoder):
    config = tiny_config(codec=f"vae:{autoencoder}", channels=4)
    model = tiny_model(config)
    pipe = Pipeline(model)
    pixels = pipe.sample_pixels([0, 1, 2], batch_size=2)
    assert pixels.shape == (3, 3, 8, 8)
    z, labels = pipe.noise([0, 1, 2], seed=0), torch.tensor([0, 1, 2])
    latents = pipe.model.to_latents(model.reverse(z, labels).image)
    assert (pipe.model.codec.decode(latents).int() - pixels.int()).abs().max() <= 1
    with pytest.raises(InputError, match="density is not that of images"):
        pipe.log_prob(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("denoising", ["learned", "score", "none"])
def test_the_reverse_model_ends_as_its_denoising_says(denoising):
    reverse = ReverseConfig(layers=1, width=16, head_width=8, denoising=denoising)
    pipe = Pipeline(tiny_model(tiny_config(reverse=reverse)))
    z, labels = pipe.noise([0, 1], seed=0), torch.tensor([0, 1])
    expected = pipe.model.reverse(z, labels).image
    if denoising == "score":
        expected = score_denoise(pipe.model.flow, expected, labels)
    assert torch.equal(pipe.sample_pixels([0, 1]), pipe.model.codec.decode(pipe.model.to_latents(expected)))


def test_refine_needs_a_reverse_model_that_knows_the_states():
    naive = ReverseConfig(layers=1, width=16, head_width=8, strategy="naive")
    for reverse, message in ((None, "has only a flow"), (naive, "strategy 'naive'")):
        with pytest.raises(InputError, match=message):
            Pipeline(tiny_model(tiny_config(reverse=reverse))).sample([0], method="refine")


def test_it_is_called_as_pipelines_of_diffusers_are(pipe):
    drawn = pipe(["b", 0], guidance_scale=1.5, seed=3)
    assert drawn.images == pipe.sample([1, 0], guidance=0.5, seed=3)
    array = pipe([1, 0], guidance_scale=1.5, seed=3, output_type="np").images
    tensor = pipe([1, 0], guidance_scale=1.5, seed=3, output_type="pt").images
    assert (array.shape, array.dtype, tuple(tensor.shape)) == ((2, 4, 4, 1), np.float32, (2, 1, 4, 4))
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(array[0, :, :, 0] * 255, np.asarray(drawn.images[0]), atol=1e-4)
    assert pipe("c", return_dict=False)[0] == pipe.sample([2])
    assert pipe().images == pipe.sample([NUM_CLASSES])


def test_noise_of_ones_own_or_of_a_generator_is_used(pipe):
    z = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    given = pipe([0, 1], latents=z).images
    assert given == pipe([0, 1], generator=torch.Generator().manual_seed(1)).images
    assert given != pipe([0, 1]).images
    with pytest.raises(InputError, match=r"of shape \(1, 4, 4\)"):
        pipe([0], latents=z)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 50}, "num_inference_steps=1: the reverse model samples in one pass"),
        ({"guidance_scale": 0.5}, "guidance_scale to be a number, 1 or more"),
        ({"output_type": "jpg"}, "Unknown output_type 'jpg'"),
        ({"class_labels": ["bb"]}, "Unknown class 'bb'; did you mean b"),
        ({"generator": [torch.Generator()]}, "Expected one torch.Generator"),
        ({"generator": torch.Generator(), "seed": 1}, "one source; got seed and generator"),
        ({"latents": torch.zeros(1, 4, 4), "seed": 1}, "one source; got seed and latents"),
        ({"latents": [[1.0]]}, "latents as a tensor of shape"),
        ({"latents": torch.full((1, 4, 4), torch.nan)}, "without NaN or Inf"),
    ],
)
def test_what_a_call_cannot_do_is_said(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        pipe(**{"class_labels": [0], **arguments})


def test_half_precision_moves_images_a_little_and_keeps_the_weights(pipe):
    exact = pipe.sample_pixels([0, 1, 2]).double()
    half = Pipeline(pipe.model).to(dtype=torch.bfloat16)
    drawn = half.sample_pixels([0, 1, 2]).double()
    assert 0 < (drawn - exact).abs().mean() < 16
    assert all(parameter.dtype == torch.float32 for parameter in half.model.flow.parameters())
    scores = half.log_prob(exact.to(torch.uint8), [0, 1, 2]).nats
    torch.testing.assert_close(scores, pipe.log_prob(exact.to(torch.uint8), [0, 1, 2]).nats, rtol=0.05, atol=0.5)
    with pytest.raises(InputError, match="Expected float32, bfloat16 or float16"):
        half.to(dtype=torch.int8)
    assert half.to(torch.float32).dtype == torch.float32


MEASURES = {
    "log_prob": lambda pipe, pixels: pipe.log_prob(pixels, [0, 1, 2, 3, 0]).nats,
    "classify": lambda pipe, pixels: pipe.classify(pixels).logits,
    "classify by Bayes": lambda pipe, pixels: pipe.classify(pixels, method="bayes").logits,
    "certify": lambda pipe, pixels: pipe.certify(pixels, [0, 1, 2, 3, 0]),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_what_is_measured_of_images_is_computed_in_the_pipelines_precision(pipe, measure):
    pixels = tiny_images(5).images
    exact, *less = (measure(pipe.to(dtype), pixels) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert torch.equal(measure(pipe.to(torch.float32), pixels), exact)
    for found in less:
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.5)
    off = [float((found - exact).abs().mean()) for found in less]
    assert 0 < off[0] < off[1]  # float16 has three more binary digits than bfloat16


def test_a_device_that_is_not_here_leaves_the_pipeline_as_it_was(pipe):
    with pytest.raises(InputError, match="cannot use 'gpu'"):
        pipe.to("gpu")
    assert pipe.device == torch.device("cpu")
    assert "cpu" in repr(pipe)


def test_an_option_that_does_not_exist_is_refused_with_the_nearest(pipe):
    with pytest.raises(InputError, match="Unknown option 'guidance_scale'; did you mean guidance"):
        pipe.sample([0], guidance_scale=5.0)
    with pytest.raises(InputError, match="Unknown option 'sede'"):
        pipe.vary(pipe.sample([0]), [0], sede=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_in_inference_mode(pipe, method):
    with torch.inference_mode():
        images = pipe.sample([0, 1], method=method)
    assert images == pipe.sample([0, 1], method=method)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["a", 1.7], "got 1.7"), (["a", True], "got True"), (["a", None], "got None"), ([0.5], "got"), ([True], "got")],
)
def test_labels_are_whole_numbers_or_names(pipe, labels, message):
    with pytest.raises(InputError, match=message):
        pipe.sample(labels)


@pytest.mark.parametrize("method", [None, Jacobi, 3])
def test_what_is_no_sampler_is_said(pipe, method):
    with pytest.raises(InputError, match="Expected the name of a method, or a sampler"):
        pipe.sample([0], method=method)


def test_a_model_saved_over_another_keeps_nothing_of_its_training(tmp_path):
    Pipeline(tiny_model(), {"seed": 7}).save_pretrained(tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model").training == {"seed": 7}
    Pipeline(tiny_model()).save_pretrained(tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model").training is None
    (tmp_path / "model" / TRAINING_FILE).write_text("{broken")
    with pytest.raises(InputError, match=r"the file is damaged\. Remove it"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_pictures_are_scored_as_their_pixels_are(pipe):
    pixels = pipe.sample_pixels([0, 1])
    assert torch.equal(pipe.log_prob(pipe.sample([0, 1])).nats, pipe.log_prob(pixels).nats)
    with pytest.raises(InputError, match="seed to be a whole number"):
        pipe.log_prob(pixels, seed=1.5)
    with pytest.raises(InputError, match="seed to be a whole number"):
        pipe.classify(pixels, seed="x")


def test_a_model_of_a_recipe_is_ready_to_sample():
    model = Pipeline.from_recipe("biflow_digits", ["model.flow.blocks=2"]).model
    assert not any(p.requires_grad for p in [*model.flow.parameters(), *model.reverse.parameters()])
    assert not model.flow.training
