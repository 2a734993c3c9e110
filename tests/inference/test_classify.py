import pytest
import torch

from biflow.data.randomness import content_keys
from biflow.errors import InputError
from biflow.inference.classify import METHODS, by_bayes, by_gradient, by_steps, classify_images
from tests.builders import tiny_config, tiny_flow, tiny_images, tiny_model


def patches() -> torch.Tensor:
    return torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_gradient_is_that_of_algorithm_1():
    """Autograd through lambda itself, the logits of a mixture of class embeddings, times the number of classes."""
    flow, x = tiny_flow(), patches()
    shares_of = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    mixed = [(shares_of.softmax(1) @ block.classes.weight[:3])[:, None] for block in flow.flow_blocks]
    flow.log_prob_of(flow.forward_conditioned(x, mixed)).sum().backward()
    torch.testing.assert_close(by_gradient(flow, x), 3 * shares_of.grad)


def test_the_gradient_is_bayes_rule_to_first_order():
    """Shrink the classes towards their mean: the error falls with the square of their distance."""
    errors = []
    for size in (0.02, 0.01):
        flow, x = tiny_flow(), patches()
        for block in flow.flow_blocks:
            table = block.classes.weight.data
            mean = table[:3].mean(0)
            table[:3] = mean + size * (table[:3] - mean)
        exact = by_bayes(flow, x)
        errors.append((by_gradient(flow, x) - (exact - exact.mean(1, keepdim=True))).abs().max().item() / size)
    assert errors[1] < 0.6 * errors[0]


def test_steps_begin_where_the_gradient_points():
    flow, x = tiny_flow(), patches()
    for block in flow.flow_blocks:
        block.classes.weight.data[:3] *= 1e-4
    torch.testing.assert_close(by_steps(flow, x), by_gradient(flow, x), rtol=1e-2, atol=1e-8)


def test_bayes_tries_every_class():
    flow, x = tiny_flow(), patches()
    for label in range(3):
        torch.testing.assert_close(by_bayes(flow, x)[:, label], flow.log_prob(x, torch.full((5,), label)))


@pytest.mark.parametrize("method", METHODS)
def test_logits_do_not_depend_on_the_batch_and_leave_the_model_without_gradients(method):
    model, pixels = tiny_model(), tiny_images(6).images
    whole = classify_images(model, pixels, method=method)
    assert whole.logits.shape == (6, 3)
    torch.testing.assert_close(whole.probabilities.sum(1), torch.ones(6, dtype=torch.float64))
    part = classify_images(model, pixels[:2], method=method)
    torch.testing.assert_close(part.logits, whole.logits[:2], rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.flow.parameters())


def test_the_class_of_an_image_does_not_depend_on_its_position():
    model, pixels = tiny_model(), tiny_images(6).images
    forwards, backwards = (classify_images(model, each).logits for each in (pixels, pixels.flip(0)))
    torch.testing.assert_close(backwards.flip(0), forwards, rtol=1e-4, atol=1e-5)


def test_nan_likelihoods_warn():
    model = tiny_model()
    model.flow.flow_blocks[0].project_out.bias.data[:] = torch.nan
    with pytest.warns(UserWarning, match="4 of 4 images have a NaN or Inf likelihood"):
        classify_images(model, tiny_images(4).images)


def test_classifying_works_in_inference_mode():
    model, pixels = tiny_model(), tiny_images(4).images
    expected = classify_images(model, pixels).logits
    with torch.inference_mode():
        assert torch.equal(classify_images(model, pixels).logits, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_classifying_works_with_weights_that_the_user_casts(dtype, method):
    model, pixels = tiny_model(), tiny_images(4).images
    expected = classify_images(model, pixels, method=method).logits
    with torch.inference_mode():
        model.flow.to(dtype)
    found = classify_images(model, pixels, method=method).logits
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.3)


def test_logits_are_the_mean_over_draws():
    model, pixels = tiny_model(), tiny_images(3).images
    drawn = [model.noisy_patches(pixels, content_keys(pixels), "classify", 4, k) for k in range(3)]
    expected = sum(METHODS["bayes"](model.flow, patches) for patches in drawn) / 3
    found = classify_images(model, pixels, method="bayes", draws=3, seed=4).logits
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


def test_draws_average_the_logits_and_no_noise_needs_none():
    model, pixels = tiny_model(), tiny_images(3).images
    several = classify_images(model, pixels, draws=3).logits
    assert not torch.allclose(several, classify_images(model, pixels).logits)
    plain = [classify_images(model, pixels, noise="none", seed=seed).logits for seed in (0, 1)]
    assert torch.equal(*plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradien"}, "Unknown method 'gradien'; did you mean gradient"),
        ({"noise": "some"}, "Unknown noise 'some'"),
        ({"draws": 0}, "draws to be a whole number, 1 or more; got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        classify_images(tiny_model(), tiny_images(2).images, **options)


def test_an_unconditional_flow_cannot_classify():
    model = tiny_model(tiny_config(num_classes=0, reverse=None))
    with pytest.raises(InputError, match="this one is unconditional"):
        classify_images(model, tiny_images(2).images)
