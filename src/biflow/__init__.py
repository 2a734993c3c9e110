"""Transformer normalizing flows that sample in one pass.

>>> from biflow import Pipeline
>>> pipe = Pipeline.from_pretrained("runs/quickstart/model")  # doctest: +SKIP
>>> images = pipe.sample([3, 1, 4, 1, 5], seed=0)             # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from biflow._version import __version__

if TYPE_CHECKING:
    from biflow.config import FlowConfig, ModelConfig, ReverseConfig, RunConfig, load_recipe
    from biflow.errors import InputError
    from biflow.models.forward_flow import ForwardFlow
    from biflow.models.reverse_model import ReverseModel
    from biflow.pipeline import Pipeline
    from biflow.sampling.guidance import Guidance
    from biflow.sampling.jacobi import invert_by_jacobi
    from biflow.sampling.one_pass import sample_in_one_pass
    from biflow.sampling.samplers import GSJacobi, Jacobi, OnePass, Refine, Sequential
    from biflow.sampling.sequential import invert_sequentially

_HOMES = {
    "FlowConfig": "biflow.config",
    "ForwardFlow": "biflow.models.forward_flow",
    "GSJacobi": "biflow.sampling.samplers",
    "Guidance": "biflow.sampling.guidance",
    "InputError": "biflow.errors",
    "Jacobi": "biflow.sampling.samplers",
    "ModelConfig": "biflow.config",
    "OnePass": "biflow.sampling.samplers",
    "Pipeline": "biflow.pipeline",
    "Refine": "biflow.sampling.samplers",
    "ReverseConfig": "biflow.config",
    "ReverseModel": "biflow.models.reverse_model",
    "RunConfig": "biflow.config",
    "Sequential": "biflow.sampling.samplers",
    "invert_by_jacobi": "biflow.sampling.jacobi",
    "invert_sequentially": "biflow.sampling.sequential",
    "load_recipe": "biflow.config",
    "sample_in_one_pass": "biflow.sampling.one_pass",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `biflow --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biflow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
