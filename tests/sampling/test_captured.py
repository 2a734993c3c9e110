"""Captured networks sample the same as eager ones; without a GPU the same steps run eagerly."""

import pytest
import torch

from biflow.config import FlowConfig, ReverseConfig
from biflow.pipeline import Pipeline
from biflow.sampling import captured
from biflow.sampling.captured import CapturedFlow, CapturedReverse, padded_span
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import invert_by_jacobi
from biflow.sampling.one_pass import guess_states, sample_in_one_pass
from biflow.sampling.refine import refine
from biflow.sampling.samplers import SAMPLERS, Jacobi, Refine, Sequential
from biflow.sampling.sequential import invert_sequentially
from tests.builders import noise_and_labels, tiny_config, tiny_flow, tiny_model, tiny_reverse

GUIDANCES = [Guidance(), Guidance(1.0), Guidance(0.7, annealed=True, on="shift"), Guidance(1.0, temperature=1.5)]
ROTARY = {"flow": FlowConfig(blocks=3, layers=2, width=16, head_width=8, positions="rotary", clip=1.0)}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def long_flow(**changes):
    """8x8 images in 64 patches of one value, so that steps attend to spans of two lengths."""
    return tiny_flow(image_size=8, patch_size=1, **changes)


def noise_of(flow, batch=3):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, *flow.prior_variance.shape)
    return torch.randn(shape, generator=generator).to(flow.prior_variance), torch.arange(batch) % 4


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
@pytest.mark.parametrize("changes", [{}, ROTARY], ids=["learned positions", "rotary"])
def test_captured_steps_equal_the_sequential_inverse(guidance, changes):
    flow = long_flow(**changes)
    z, labels = noise_of(flow)
    x = invert_sequentially(CapturedFlow(flow), z, labels, guidance=guidance).x
    torch.testing.assert_close(x, invert_sequentially(flow, z, labels, guidance=guidance).x, rtol=0, atol=1e-9)


def test_a_prepared_flow_serves_other_labels_even_after_nan_noise():
    flow = long_flow()
    prepared, (z, labels) = CapturedFlow(flow), noise_of(flow)
    invert_sequentially(prepared, torch.full_like(z, torch.nan), labels)
    others = (labels + 1) % 4
    x = invert_sequentially(prepared, z, others).x
    torch.testing.assert_close(x, invert_sequentially(flow, z, others).x, rtol=0, atol=1e-9)
    assert len(prepared.prepared) == 1


def test_a_flow_caches_few_batch_sizes():
    flow = tiny_flow()
    prepared = CapturedFlow(flow)
    for batch in range(1, captured.CACHE_SIZE + 3):
        invert_sequentially(prepared, *noise_and_labels(batch))
    assert len(prepared.prepared) == captured.CACHE_SIZE


@pytest.mark.parametrize("groups", [None, 1, 20, (63, 7, 30)])
def test_captured_blocks_iterate_as_eager_ones(groups):
    flow = long_flow()
    z, labels = noise_of(flow)
    prepared = CapturedFlow(flow)
    for guidance in (Guidance(), Guidance(0.5)):
        options = {"guidance": guidance, "tolerance": 1e-6, "groups": groups}
        for _ in range(2):
            found = invert_by_jacobi(prepared, z, labels, **options)
            expected = invert_by_jacobi(flow, z, labels, **options)
            torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-9)
            assert found.network_calls == expected.network_calls


def test_captured_blocks_refine_as_eager_ones():
    model = tiny_model()
    z, labels = (part.to(torch.float32) if part.is_floating_point() else part for part in noise_and_labels())
    start = guess_states(model.reverse, z, labels)
    found = refine(CapturedFlow(model.flow), z, labels, start=start, guidance=Guidance(0.5))
    expected = refine(model.flow, z, labels, start=start, guidance=Guidance(0.5))
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-6)
    assert found.rounds == expected.rounds


@pytest.mark.parametrize("guidance", ["trained", "two_passes"])
def test_a_captured_pass_equals_the_eager_one_at_every_strength(guidance):
    reverse = tiny_reverse(reverse=ReverseConfig(layers=1, width=16, head_width=8, guidance=guidance))
    prepared, (z, labels) = CapturedReverse(reverse), noise_and_labels()
    for each in (
        Guidance(),
        Guidance(1.0),
        Guidance(0.3),
        Guidance(0.3, denoise=0.8),
        Guidance(0, denoise=1),
        Guidance(),
    ):
        found = sample_in_one_pass(prepared, z, labels, guidance=each).x
        torch.testing.assert_close(found, sample_in_one_pass(reverse, z, labels, guidance=each).x)
    assert len(prepared.passes) == (1 if guidance == "trained" else 2)


def test_spans_are_few():
    assert {padded_span(t + 1) for t in range(1023)} == {32, 64, 128, 256, 512, 1024}
    assert all(padded_span(t + 1) > t for t in range(1023))


METHODS = [*SAMPLERS, Jacobi(groups=2), Sequential(denoise=0), Refine()]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_compiled_pipeline_draws_the_same_images_whatever_the_batch(method):
    pipe, compiled = Pipeline(tiny_model()), Pipeline(tiny_model()).compile(layers=False)
    labels = [0, 1, 2, 0, 1, 2, 0]
    expected = pipe.sample_pixels(labels, method=method, guidance=0.5).int()
    for batch_size in (7, 4, 1):
        found = compiled.sample_pixels(labels, method=method, guidance=0.5, batch_size=batch_size).int()
        assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("method", ["reverse", "sequential", "jacobi", Jacobi(groups=2), "refine"], ids=str)
def test_a_compiled_pipeline_draws_in_inference_mode_and_after_it(method):
    compiled = Pipeline(tiny_model()).compile(layers=False)
    with torch.inference_mode():
        inside = compiled.sample_pixels([0, 1], method=method)
    assert torch.equal(compiled.sample_pixels([0, 1], method=method), inside)


def test_a_compiled_pipeline_draws_in_few_sizes(monkeypatch):
    engine, counts = Pipeline(tiny_model()).engine, (100, 99, 64, 37, 5, 1)
    assert [engine.size_to_draw(count, 100) for count in counts] == list(counts)
    engine.compiled = True
    monkeypatch.setattr(type(engine.model), "device", torch.device("cuda"))
    assert [engine.size_to_draw(count, 100) for count in counts] == [100, 100, 64, 64, 8, 1]


def test_the_most_recently_used_graphs_are_cached():
    cache: dict[int, str] = {}
    for key in [*range(captured.CACHE_SIZE), 0, captured.CACHE_SIZE]:
        assert captured.get_or_make(cache, key, lambda key=key: f"made {key}") == f"made {key}"
    assert list(cache) == [*range(2, captured.CACHE_SIZE), 0, captured.CACHE_SIZE]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["reverse", "sequential", "refine"])
def test_half_precision_samples_are_close_and_leave_the_model_in_float32(dtype, method):
    pipe = Pipeline(tiny_model(tiny_config()))
    expected = pipe.sample_pixels([0, 1, 2], method=method, guidance=0.5).int()
    found = pipe.to(dtype).sample_pixels([0, 1, 2], method=method, guidance=0.5).int()
    assert (found - expected).abs().float().mean() <= 2
    assert pipe.model.flow.prior_variance.dtype == torch.float32


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_on_a_gpu_graphs_draw_the_images_of_the_eager_path(method, dtype):
    labels = [0, 1, 2, 0, 1, 2, 0]
    eager = Pipeline(tiny_model()).to("cuda", dtype)
    compiled = Pipeline(tiny_model()).to("cuda").compile(dtype)
    for guidance in (0.0, 0.5):
        options = {"method": method, "guidance": guidance}
        expected = eager.sample_pixels(labels, **options).int()
        for batch_size in (7, 4):
            difference = (
                (compiled.sample_pixels(labels, **options, batch_size=batch_size).int() - expected).abs().float()
            )
            if dtype == torch.float32:
                assert difference.max() <= 1
            assert difference.mean() <= 2  # other kernels round otherwise, which an exact inverse amplifies
