"""Every argument of a pipeline's calls reaches what it is for: the function beneath gives the same with it."""

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.data.images import to_pixels
from biflow.data.mask import to_mask
from biflow.errors import InputError
from biflow.inference.classify import classify_images
from biflow.inference.edit import Editor
from biflow.inference.likelihood import cycle_error, score_images
from biflow.pipeline import Pipeline
from tests.builders import tiny_images, tiny_model, with_names

PIXELS = tiny_images(4).images
LABELS = torch.tensor([0, 1, 2, 3])
LEFT = torch.tensor([True, True, False, False]).expand(4, 1, 4, 4)
OPTIONS = {"guidance": 0.5, "method": "sequential", "seed": 5, "batch_size": 3}


@pytest.fixture
def pipe():
    return Pipeline(tiny_model())


def with_options(options):
    """A function beneath an edit's call: (pipeline, name of the edit, its arguments) -> pixels."""

    def beneath(pipe, edit, *given, **how):
        decode = lambda z, labels: pipe.decode_pixels(z, labels, **options)  # noqa: E731
        found = getattr(Editor(pipe.model, decode, options.get("seed", 0)), edit)(*given, **how)
        return found if isinstance(found, torch.Tensor) else found.pixels

    return beneath


@pytest.mark.parametrize(
    "given", [{"noise": "training"}, {"draws": 3}, {"draws": 3, "average": "importance"}, {"seed": 7}]
)
def test_arguments_of_log_prob(pipe, given):
    found = pipe.log_prob(PIXELS, LABELS, **given).nats
    assert torch.equal(found, score_images(pipe.model, PIXELS, LABELS, **given).nats)
    less = dict([*given.items()][:-1])
    assert not torch.equal(found, pipe.log_prob(PIXELS, LABELS, **less).nats)


@pytest.mark.parametrize("given", [{"method": "bayes"}, {"noise": "uniform"}, {"draws": 3}, {"seed": 7}])
def test_arguments_of_classify(pipe, given):
    found = pipe.classify(PIXELS, **given).logits
    assert torch.equal(found, classify_images(pipe.model, PIXELS, **given).logits)
    assert not torch.equal(found, pipe.classify(PIXELS).logits)


def test_arguments_of_certify_and_encode(pipe):
    z = pipe.noise(range(4), 7)
    assert torch.equal(pipe.certify(PIXELS, LABELS, seed=7), cycle_error(pipe.model, PIXELS, LABELS, z=z))
    found = pipe.encode(PIXELS, LABELS, seed=7)
    assert torch.equal(found, Editor(pipe.model, None, 7).encode(PIXELS, LABELS))
    assert not torch.equal(found, pipe.encode(PIXELS, LABELS))


def test_images_are_drawn_at_the_indices_after_start(pipe):
    whole = pipe.draw(LABELS, **OPTIONS).pixels
    assert torch.equal(pipe.draw(LABELS[2:], start=2, **OPTIONS).pixels, whole[2:])
    assert torch.equal(pipe.decode_pixels(pipe.noise(range(4), 5), LABELS, **OPTIONS), whole)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_call_are_those_of_sample(pipe, name):
    """guidance_scale is 1 more than guidance; options of its own noise are followed too."""
    ours = {key: value for key, value in OPTIONS.items() if key not in {name, "batch_size"}}
    theirs = {key: value for key, value in ours.items() if key != "guidance"}
    scale = {"guidance_scale": 1 + ours["guidance"]} if "guidance" in ours else {}
    assert pipe(LABELS, **theirs, **scale).images == pipe.sample(LABELS, **ours)
    theirs.pop("seed", None)
    z = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert pipe(LABELS, latents=z, **theirs, **scale).images == pipe.decode(z, LABELS, **ours)


EDITS = {
    "reconstruct": ((PIXELS, LABELS), {}),
    "reclass": ((PIXELS, LABELS, LABELS.flip(0)), {}),
    "inpaint": ((PIXELS, LABELS, LEFT), {"proposals": 2, "rounds": 1, "start": "grey", "paste": False}),
    "vary": ((PIXELS, LABELS), {"strength": 0.7, "num": 3}),
}
DEFAULTS = {
    "inpaint": {"proposals": 4, "rounds": 2, "start": "draw", "paste": True},
    "vary": {"strength": 0.3, "num": 6},
}


@pytest.mark.parametrize(("edit", "name"), [(edit, name) for edit, (_, how) in EDITS.items() for name in (*how, None)])
def test_arguments_of_an_edit(pipe, edit, name):
    """Each argument apart from its default, the others at theirs; and the sampling options."""
    given, how = EDITS[edit]
    chosen = {name: how[name]} if name else {}
    called = (given[0], LEFT[:, 0], given[1]) if edit == "inpaint" else given
    found = getattr(pipe, edit)(*called, **chosen, **OPTIONS)
    pixels = to_pixels(found) if isinstance(found, list) else found.pixels
    expected = with_options(OPTIONS)(pipe, edit, *given, **{**DEFAULTS.get(edit, {}), **chosen})
    assert torch.equal(pixels, expected)


def test_arguments_of_an_interpolation(pipe):
    pair = (LABELS, LABELS.flip(0))
    found = pipe.interpolate(PIXELS, PIXELS.flip(0), labels=pair, steps=4, **OPTIONS).pixels
    expected = with_options(OPTIONS)(pipe, "interpolate", (PIXELS, PIXELS.flip(0)), pair, steps=4)
    assert torch.equal(found, expected)
    assert pipe.interpolate(PIXELS, PIXELS, **OPTIONS).pixels.shape[1] == 7


MASK = torch.ones(4, 4, dtype=torch.bool)
OTHER_KINDS = {
    "labels: unsigned": lambda p: p.sample(np.array([9], np.uint16)),
    "labels: more than there are": lambda p: p.sample(np.array([2**64 - 1], np.uint64)),
    "labels: complex": lambda p: p.sample(torch.tensor([1j])),
    "labels: sparse": lambda p: p.sample(torch.tensor([1]).to_sparse()),
    "labels: meta": lambda p: p.sample(torch.zeros(1, dtype=torch.long, device="meta")),
    "label: number": lambda p: p.log_prob(PIXELS, torch.tensor(1.5)),
    "images: sparse": lambda p: p.classify(PIXELS.to_sparse()),
    "images: meta": lambda p: p.classify(PIXELS.to("meta")),
    "indices: negative": lambda p: p.noise([0, -1], 0),
    "indices: halves": lambda p: p.noise([0.5], 0),
    "indices: names": lambda p: p.noise(["a"], 0),
    "indices: one": lambda p: p.noise(3, 0),
    "start: negative": lambda p: p.draw([0], start=-1),
    "start: half": lambda p: p.draw([0], start=0.5),
    "seed of a recipe": lambda _: Pipeline.from_recipe("biflow_digits", seed=0.5),
    "latents: complex": lambda p: p([0], latents=torch.zeros(1, 4, 4, dtype=torch.complex64)),
    "noise: complex": lambda p: p.decode(torch.zeros(1, 4, 4, dtype=torch.complex64), [0]),
    "noise: sparse": lambda p: p.decode(torch.ones(1, 4, 4).to_sparse(), [0]),
    **{
        f"{name}: {value!r}": lambda p, call=call, value=value: call(p, value)
        for name, call in {
            "score noise": lambda p, value: p.log_prob(PIXELS, noise=value),
            "average": lambda p, value: p.log_prob(PIXELS, average=value),
            "method": lambda p, value: p.classify(PIXELS, method=value),
            "noise": lambda p, value: p.classify(PIXELS, noise=value),
            "start": lambda p, value: p.inpaint(PIXELS, MASK, start=value),
            "output_type": lambda p, value: p([0], output_type=value),
            "sampler": lambda p, value: p.sample([0], method=value),
        }.items()
        for value in (None, 1, [], {})
    },
}


@pytest.mark.parametrize("call", OTHER_KINDS.values(), ids=OTHER_KINDS.keys())
def test_arguments_of_another_kind_are_refused_in_one_sentence(pipe, call):
    with pytest.raises(InputError, match=r"Expected |Unknown "):
        call(pipe)


def test_whole_numbers_of_every_kind_count_by_their_value(pipe):
    expected = pipe.sample_pixels([2, 1])
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int64):
        assert torch.equal(pipe.sample_pixels(np.array([2, 1], kind)), expected)
    for indices in (np.arange(2), torch.arange(2), range(2), (np.uint8(0), np.int64(1))):
        assert torch.equal(pipe.noise(indices, 0), pipe.noise([0, 1], 0))
    found = pipe.interpolate(PIXELS, PIXELS, steps=np.int64(3)).pixels
    assert torch.equal(found, pipe.interpolate(PIXELS, PIXELS, steps=3).pixels)
    assert torch.equal(pipe.draw([1], start=np.int64(1)).pixels, expected[1:])


def test_images_and_a_mask_that_are_not_square_keep_their_sides():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert np.array_equal(to_pixels([Image.fromarray(image)])[0, 0].numpy(), image)
    colours = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(to_pixels([Image.fromarray(colours)])[0].permute(1, 2, 0).numpy(), colours)
    grey = np.zeros((4, 6), np.uint8)
    grey[1, 2:5] = (127, 128, 255)
    found = to_mask(Image.fromarray(grey), torch.zeros(2, 1, 4, 6))
    assert np.array_equal(found, np.broadcast_to(grey >= 128, (2, 1, 4, 6)))


def test_a_class_whose_name_is_a_number_is_meant_by_its_name():
    pipe = Pipeline(with_names(tiny_model(), ("1", "2", "0")))
    assert pipe.sample(["0", "1", "2"]) == pipe.sample([2, 0, 1])


def test_a_warning_counts_images_that_are_still_broken_after_redrawing(pipe):
    with torch.no_grad():
        pipe.model.reverse.project_out.bias.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"2 of 2 images contain NaN or Inf and were resampled; 2 still do"):
        pipe.sample_pixels([0, 1], redraw=True)


def test_precision_and_compilation_are_kept_apart(pipe):
    half = pipe.to(torch.bfloat16).compile(layers=False)
    assert (half.dtype, half.engine.compiled, half.engine.layers) == (torch.bfloat16, True, False)
    assert Pipeline(tiny_model()).compile().engine.layers
