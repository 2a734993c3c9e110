"""The library inside other people's programs: their default dtype, their inference mode, weights that they cast."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from biflow.checkpoint import save_model
from biflow.pipeline import Pipeline
from biflow.sampling.samplers import SAMPLERS
from tests.builders import tiny_images, tiny_model, tiny_run
from tests.training.test_training import train_in, weights

LABELS = [0, 1, 2]
PIXELS = tiny_images(3).images


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
}
USES: dict[str, Callable[[Pipeline], Tensor]] = {
    **{name: lambda pipe, name=name: pipe.sample_pixels(LABELS, method=name, guidance=0.5) for name in SAMPLERS},
    "log_prob": lambda pipe: pipe.log_prob(PIXELS, LABELS).nats,
    "gradient": lambda pipe: pipe.classify(PIXELS).logits,
    "steps": lambda pipe: pipe.classify(PIXELS, method="steps").logits,
    "bayes": lambda pipe: pipe.classify(PIXELS, method="bayes").logits,
    "vary": lambda pipe: pipe.vary(PIXELS, LABELS, method="sequential").pixels,
    "interpolate": lambda pipe: pipe.interpolate(PIXELS[:1], PIXELS[1:2], labels=([0], [1])).pixels,
    "certify": lambda pipe: pipe.certify(PIXELS, LABELS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model()
    model.reverse.record_flow(model.flow)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(model, folder, None)
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    pipe = Pipeline.from_pretrained(folder)
    return {name: use(pipe) for name, use in USES.items()}


@pytest.mark.parametrize("use", ["inside", "after it"])
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_what_is_loaded_in_a_surrounding_gives_the_same_numbers(surrounding, use, folder, expected):
    with SURROUNDINGS[surrounding]():
        pipe = Pipeline.from_pretrained(folder)
    with SURROUNDINGS[surrounding]() if use == "inside" else nullcontext():
        found = {name: call(pipe) for name, call in USES.items()}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("networks", [("flow",), ("flow", "reverse")], ids="+".join)
def test_weights_that_the_user_casts_give_nearly_the_same_numbers(networks, dtype, inference, folder, expected):
    pipe = Pipeline.from_pretrained(folder)
    with torch.inference_mode(inference):
        for name in networks:
            getattr(pipe.model, name).to(dtype)
    for name, call in USES.items():
        found = call(pipe)
        atol, rtol = (4, 0) if found.dtype == torch.uint8 else (0.1, 0.05)
        torch.testing.assert_close(found, expected[name], rtol=rtol, atol=atol, check_dtype=False, msg=name)


def test_a_default_dtype_does_not_change_training(tmp_path):
    plain = train_in(tmp_path / "plain", **tiny_joint())
    with default_dtype(torch.float64):
        other = train_in(tmp_path / "other", **tiny_joint())
    for ours, theirs in zip(weights(other), weights(plain), strict=True):
        assert torch.equal(ours, theirs)


def tiny_joint() -> dict[str, object]:
    return {"stage": "joint", "model": tiny_run().model}
