"""Cost estimates against torch's FLOP counter and the tensors that autograd saves."""

from inspect import unwrap
from math import inf

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from biflow.config import (
    AlignConfig,
    DistanceConfig,
    FlowConfig,
    FlowFitConfig,
    ModelConfig,
    ReverseConfig,
    ReverseFitConfig,
    RunConfig,
    TransformerConfig,
    load_recipe,
    recipe_names,
)
from biflow.data.augment import GUIDED_SHARE
from biflow.errors import InputError
from biflow.features.classifier import Classifier
from biflow.features.encoders import make_encoder
from biflow.models.codec import make_codec
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel
from biflow.nn.embeddings import RotaryPositions
from biflow.nn.transformer import TransformerLayer
from biflow.plan.memory import step_memory, trained_parameters
from biflow.plan.operations import sampling, stage_fits, training_step
from biflow.plan.parts import layer
from biflow.plan.report import Machine, memory_rows
from biflow.sampling.guidance import Guidance, GuidedBlock
from biflow.sampling.jacobi import solve_block
from biflow.sampling.sequential import invert_sequentially
from biflow.training.alignment import Alignment
from biflow.training.batches import Batch
from biflow.training.objectives import FitFlow, FitJoint, FitReverse
from biflow.training.reverse_loss import ReverseLoss

BATCH = 20
LABEL_DROP = 0.1
ATEN = torch.ops.aten
ON_A_CPU = {  # torch's own formulas, which it does not apply to attention on a CPU
    ATEN._scaled_dot_product_flash_attention_for_cpu: unwrap(sdpa_flop),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: unwrap(sdpa_backward_flop),
}
SIZES = {"width": 32, "head_width": 16}
MODERN = {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 2.5, "positions": "rotary", "qk_norm": True}


def counted(call) -> float:
    """FLOPs per image, as counted by torch."""
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        call()
    return counter.get_total_flops() / BATCH


def run_config(*, flow=None, reverse=None, align=None, stage="both", num_classes=3) -> RunConfig:
    """8x8 images of three channels in 16 patches of 12 values."""
    model = ModelConfig(
        image_size=8,
        channels=3,
        patch_size=2,
        num_classes=num_classes,
        noise_std=0.2,
        flow=FlowConfig(**{"blocks": 3, "layers": 2, **SIZES, **(flow or {})}),
        reverse=ReverseConfig(**{"layers": 2, **SIZES, **(reverse or {})}),
    )
    fit = FlowFitConfig(align=AlignConfig(**align) if align else None, label_drop=LABEL_DROP, batch_size=BATCH)
    fit_reverse = ReverseFitConfig(label_drop=LABEL_DROP, batch_size=BATCH)
    return RunConfig(model=model, fit_flow=fit, fit_reverse=fit_reverse, stage=stage)


def batch() -> Batch:
    """Images of which as many are guided as are on average."""
    images = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = torch.arange(BATCH) < round(GUIDED_SHARE * (1 - LABEL_DROP) * BATCH)
    return Batch(images, images + 0.1, torch.zeros(BATCH, dtype=torch.long), guided.float())


def objective(config: RunConfig, stage: str):
    """What a stage of training minimises."""
    torch.manual_seed(0)
    model, align = config.model, config.fit_flow.align
    flow, alignment = ForwardFlow(model), None
    if align:
        encoder = make_encoder(align, classifier=Classifier(model.channels, model.num_classes))
        alignment = Alignment(align, model, encoder, image_shape=(3, 8, 8))
    if stage == "flow":
        return FitFlow(flow, alignment)
    loss = ReverseLoss(config.fit_reverse, model, codec=make_codec("pixels"), image_shape=(3, 8, 8))
    if stage == "reverse":
        return FitReverse(ReverseModel(model), flow, loss)
    return FitJoint(ReverseModel(model), FitFlow(flow, alignment), loss)


def count_step(config: RunConfig, stage: str) -> float:
    fit = objective(config, stage)

    def step() -> None:
        fit(batch()).total.backward()

    return counted(step)


FLOWS = [
    {},
    MODERN,
    {"norm": "rms"},
    {"mlp": "swiglu"},
    {"positions": "rotary"},
    {"qk_norm": True},
    {"layers": (3, 1, 2)},
    {"blocks": 1, "layers": 3},
    {"volume_preserving": True, "clip": 1.0},
]
REVERSES = [
    {},
    MODERN,
    {"class_tokens": 4},
    {"strategy": "distillation"},
    {"strategy": "naive"},
    {"denoising": "score"},
    {"denoising": "none", "strategy": "distillation"},
    {"guidance": "trained"},
    {"guidance": "two_passes", "class_tokens": 2},
]
PLACES = [[2, 1], [3, 2]]
ALIGNMENTS = [
    {"strategy": "forward", "layers": PLACES},
    {"strategy": "detach", "layers": PLACES, "hidden_width": 48},
    {"strategy": "reverse", "layers": PLACES},
    {"strategy": "reverse", "layers": [[1, 2]], "sweeps": 3},
    {"strategy": "reverse_literal", "layers": PLACES},
    {"strategy": "reverse_literal", "layers": [[1, 1]]},
    {"strategy": "reverse_sequential", "layers": PLACES},
]


@pytest.mark.parametrize("changes", FLOWS, ids=str)
def test_a_step_of_the_flow_takes_the_operations_that_torch_counts(changes):
    config = run_config(flow=changes)
    assert training_step(config, "flow").operations == pytest.approx(count_step(config, "flow"), rel=0.01)


@pytest.mark.parametrize("changes", ALIGNMENTS, ids=str)
def test_a_step_of_an_aligned_flow_takes_the_operations_that_torch_counts(changes):
    config = run_config(align=changes)
    assert training_step(config, "flow").operations == pytest.approx(count_step(config, "flow"), rel=0.01)


@pytest.mark.parametrize("changes", REVERSES, ids=str)
def test_a_step_of_the_reverse_model_takes_the_operations_that_torch_counts(changes):
    config = run_config(reverse=changes)
    assert training_step(config, "reverse").operations == pytest.approx(count_step(config, "reverse"), rel=0.01)


@pytest.mark.parametrize("align", [None, ALIGNMENTS[2]], ids=str)
def test_a_joint_step_takes_the_operations_that_torch_counts(align):
    config = run_config(stage="joint", align=align, reverse={"guidance": "trained"})
    assert training_step(config, "joint").operations == pytest.approx(count_step(config, "joint"), rel=0.01)


def test_networks_unknown_before_loading_are_left_out_and_named():
    config = run_config(stage="joint", align={"encoder": "dinov2", "network": "x", "layers": PLACES})
    distances = (DistanceConfig(kind="dinov2"), DistanceConfig(kind="mse"))
    config = config.model_copy(update={"fit_reverse": ReverseFitConfig(distances=distances)})
    assert training_step(config, "joint").left_out == ("encoder", "network of dinov2")


def score(flow: ForwardFlow, x: torch.Tensor, labels: torch.Tensor) -> None:
    """What `score_denoise` evaluates, by `backward`: the counter fails within `autograd.grad`."""
    flow.requires_grad_(False).log_prob(x.requires_grad_(), labels).sum().backward()


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("changes", REVERSES, ids=str)
def test_one_pass_takes_the_operations_that_torch_counts(changes, strength):
    config = run_config(reverse=changes).model
    torch.manual_seed(0)
    flow, reverse = ForwardFlow(config), ReverseModel(config).requires_grad_(False)
    z, labels = torch.randn(BATCH, 16, 12), torch.zeros(BATCH, dtype=torch.long)

    def sample() -> None:
        image = reverse(z, labels, strength).image
        if config.reverse.denoising == "score":
            score(flow, image, labels)

    found = sampling(config)["one pass, guided" if strength else "one pass"]
    assert found == pytest.approx(counted(sample), rel=0.01)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("changes", FLOWS, ids=str)
def test_exact_inverses_take_the_operations_that_torch_counts(changes, strength):
    config = run_config(flow=changes).model
    torch.manual_seed(0)
    flow, guidance = ForwardFlow(config), Guidance(strength)
    z, labels = torch.randn(BATCH, 16, 12), torch.zeros(BATCH, dtype=torch.long)

    @torch.no_grad()
    def sweep() -> None:
        for level in range(config.flow.blocks):
            guided = GuidedBlock(flow, level, labels, guidance)
            assert solve_block(guided, z, z, (), tolerance=1e9, size=15)[1] == 1

    found, guided = sampling(config), ", guided" if strength else ""
    inverse = counted(lambda: invert_sequentially(flow, z, labels, guidance=guidance))
    assert found[f"exact inverse{guided}"] == pytest.approx(inverse, rel=0.01)
    assert found[f"Jacobi, one sweep{guided}"] == pytest.approx(counted(sweep), rel=0.01)
    assert found["score step"] == pytest.approx(counted(lambda: score(flow, z, labels)), rel=0.01)


def saved_bytes(sizes: TransformerConfig, *, half: bool) -> float:
    """Bytes per token that autograd saves in one layer: each storage once, without weights and rotary tables."""
    module, x = TransformerLayer(sizes, causal=True), torch.randn(4, 16, sizes.width, requires_grad=True)
    rotary = RotaryPositions(16, sizes.head_width)(0, 16) if sizes.positions == "rotary" else None
    saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        module(x, rotary=rotary)
    values = [tensor for tensor in saved if tensor.shape[0] in {4, 64}]  # by image, or by token
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in values}.values()) / 64


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("changes", FLOWS[:6], ids=str)
def test_a_layer_saves_the_bytes_that_autograd_saves(changes, half):
    sizes = TransformerConfig(**{**SIZES, "mlp_ratio": 3.5, **changes})
    assert layer(sizes, 1, value=2 if half else 4).saved == saved_bytes(sizes, half=half)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_planned(name):
    config = load_recipe(name)
    for stage in stage_fits(config):
        assert memory_rows(config, stage, Machine())[-1][0] == "largest batch per device"
        assert trained_parameters(config, stage).all > 0


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_largest_batch_per_device_just_fits(sharded, recompute):
    memory = step_memory(run_config(), "flow", devices=4, sharded=sharded, recompute=recompute)
    for room in (2 * memory.fixed, 100 * memory.fixed):
        most = memory.largest_batch(room)
        assert memory.peak(most) <= room < memory.peak(most + 1)
    assert memory.largest_batch(memory.fixed / 2) == 0


def test_sharding_and_recomputing_save_memory():
    config = load_recipe("tarflow_imagenet64")
    plain, sharded = (step_memory(config, "flow", devices=8, sharded=each) for each in (False, True))
    assert sharded.parameters == plain.parameters / 8
    assert sharded.fixed < plain.fixed / 4
    assert step_memory(config, "flow", devices=8, sharded=False, recompute=True).peak(32) < plain.peak(32) / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, "--devices to be a whole number, 1 or more; got 0"),
        ({"device_memory": 0.0}, "--device-memory to be a number above 0; got 0.0"),
        ({"tflops": inf}, "--tflops to be a number above 0; got inf"),
        ({"utilisation": 40.0}, "--utilisation to be a number above 0, up to 1"),
    ],
)
def test_impossible_machines_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Machine(**changes)
