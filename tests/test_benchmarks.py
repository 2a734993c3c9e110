"""The counts that benchmarks rest on."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from biflow.config import FlowConfig, ReverseConfig
from biflow.models.forward_flow import ForwardFlow
from tests.builders import tiny_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A function that imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("machine", "runs", "seeds", "training_step", "ablations"):
        sys.modules.pop(name, None)


@pytest.fixture
def training_step(load):
    return load("training_step")


@pytest.fixture
def ablations(load):
    return load("ablations")


@pytest.mark.parametrize(
    "changes", [{"layers": 2}, {"layers": (1, 3, 1)}, {"mlp": "swiglu", "mlp_ratio": 2.5}, {"volume_preserving": True}]
)
def test_operations_are_those_that_torch_counts_with_half_of_attention(training_step, changes):
    config = tiny_config(flow=FlowConfig(**{"blocks": 3, "width": 16, "head_width": 8, **changes}))
    flow = ForwardFlow(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        flow(torch.randn(1, 4, 4), torch.zeros(1, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "bmm" in str(name))
    expected = counter.get_total_flops() - attention / 2
    assert training_step.forward_operations(config) == expected


@pytest.mark.parametrize(
    ("better", "worse", "outcome"),
    [
        ([5.0, 6.0, 5.5], [8.0, 8.5, 9.0], "holds"),
        ([8.0, 8.5, 9.0], [5.0, 6.0, 5.5], "does not hold"),
        ([5.0, 6.0, 5.5], [7.0, 7.1, 9.0], "too close to tell"),  # in every seed, but the spread is as large
        ([5.0, 6.0, 7.0], [6.0, 5.0, 8.0], "too close to tell"),  # not in every seed
        ([5.0, 5.0, 5.0], [5.1, 5.1, 9.0], "too close to tell"),  # one seed carries it
        ([5.0], [9.0], "too close to tell"),  # one seed says nothing of the spread
    ],
)
def test_a_claim_holds_if_every_seed_agrees_beyond_the_spread(ablations, better, worse, outcome):
    claim = ablations.Claim("Table", "a", "b", "A beats b")
    scores = {("Table", name): [{"frechet_distance": x} for x in xs] for name, xs in (("a", better), ("b", worse))}
    assert f"**{outcome}**" in ablations.verdict(claim, scores)


def test_every_row_of_the_ablations_can_be_trained_and_every_claim_names_rows(ablations):
    work = ablations.Work("digits", 10, 10, Path("runs"))
    rows = {(table, row.name): row for table, rows in ablations.TABLES.items() for row in rows}
    for row in rows.values():
        flow, overrides = ablations.TRAININGS[row.training]
        config = ablations.settings(work, 0, ["stage=reverse", "flow_from=x", *ablations.FLOWS[flow], *overrides])
        assert ReverseConfig(**{**config.model.reverse.model_dump(), **dict(row.sampled_as)})
    for claim in ablations.CLAIMS:
        assert {(claim.table, claim.better), (claim.table, claim.worse)} <= rows.keys()
