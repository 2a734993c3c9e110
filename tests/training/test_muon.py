"""Muon for the matrices inside transformer layers, AdamW for everything else."""

import pytest
import torch
from torch import nn

from biflow.config import FitConfig
from biflow.distributed import World
from biflow.errors import InputError
from biflow.features.judge import Judge
from biflow.nn.transformer import layer_matrices
from biflow.training.muon import Muon
from biflow.training.optim import Optimizers, learning_rate_factor
from tests.builders import tiny_model

MUON = FitConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=2e-2, steps=10, warmup_steps=2)
SHAPES = [(24, 8), (8, 8), (32, 8), (8, 32), (8, 8)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        for parameter, gradient in zip(parameters, matrices(step + 1), strict=True):
            parameter.grad = gradient.detach()
        optimizer.step()


def test_steps_match_pytorchs_muon_up_to_its_bfloat16():
    ours, theirs = matrices(), matrices()
    train(ours, Muon(ours, lr=0.02, weight_decay=0.1, count_parts=lambda _: 1))
    train(theirs, torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1))
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        moved = nn.functional.cosine_similarity((a - start).flatten(), (b - start).flatten(), dim=0)
        assert moved > 0.999


def test_stacked_matrices_are_orthogonalised_separately():
    (fused,) = [nn.Parameter(torch.randn(24, 8))]
    apart = [nn.Parameter(part.clone()) for part in fused.detach().chunk(3)]
    gradient = torch.randn(24, 8)
    fused.grad = gradient
    for parameter, part in zip(apart, gradient.chunk(3), strict=True):
        parameter.grad = part.clone()
    Muon([fused], lr=0.1, weight_decay=0.1, count_parts=lambda _: 3).step()
    Muon(apart, lr=0.1, weight_decay=0.1, count_parts=lambda _: 1).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in apart]))


def test_an_update_has_singular_values_of_about_one():
    (matrix,) = [nn.Parameter(torch.zeros(8, 32))]
    matrix.grad = torch.randn(8, 32)
    Muon([matrix], lr=1.0, weight_decay=0.0, count_parts=lambda _: 1).step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_muon_trains_the_matrices_inside_layers_and_adamw_the_rest_each_at_its_rate():
    flow = tiny_model().flow
    optimizers = Optimizers(flow, MUON)
    adamw, muon = optimizers.all
    taken = [p for group in muon.param_groups for p in group["params"]]
    rest = [p for group in adamw.param_groups for p in group["params"]]
    names = {p: name for name, p in flow.named_parameters()}
    assert {names[p].split(".transformer.")[-1].split(".", 2)[2] for p in taken} == {
        "attention.qkv.weight", "attention.out.weight", "mlp.0.weight", "mlp.2.weight",
    }  # fmt: skip
    assert len(taken) + len(rest) == len(names)
    assert {name for p in rest if (name := names[p]) and "layers" in name and p.ndim == 2} == set()
    optimizers.set_learning_rate(5)
    factor = learning_rate_factor(5, MUON)
    assert {group["lr"] for group in muon.param_groups} == {2e-2 * factor}
    assert {group["lr"] for group in adamw.param_groups} == {1e-3 * factor}


def test_a_model_without_transformer_layers_is_trained_by_adamw_alone():
    judge = Judge(1, 3)
    assert not layer_matrices(judge)
    assert len(Optimizers(judge, MUON).all) == 1


def test_the_full_optimizer_state_is_restored():
    alone = World(0, 1, torch.device("cpu"))
    first, second = (tiny_model(seed=seed).flow for seed in (0, 1))
    optimizers = [Optimizers(flow, MUON) for flow in (first, second)]
    for parameter in first.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers[0].step(torch.tensor(0.0))
    optimizers[1].load_state_dict(optimizers[0].state_dict(alone))
    for name, state in optimizers[0].state_dict(alone).items():
        found = optimizers[1].state_dict(alone)[name]
        assert state.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in state.items())


def test_a_torch_without_muon_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"Expected torch 2\.9 or newer for optimizer=muon; got 2.*optimizer=adamw"):
        Optimizers(tiny_model().flow, MUON)
    Optimizers(tiny_model().flow, FitConfig())
