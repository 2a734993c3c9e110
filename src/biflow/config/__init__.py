"""Every setting of the project, as frozen models with their defaults, which live here and nowhere else."""

from biflow.config.choices import Average, ClassifyMethod, ClassifyNoise, ScoreNoise, SplitName
from biflow.config.model import FlowConfig, ModelConfig, ReverseConfig, TransformerConfig
from biflow.config.recipes import load_recipe, recipe_head, recipe_names, smoke, smoke_fit
from biflow.config.run import ReadingConfig, RunConfig, TrackerName, WatchConfig
from biflow.config.training import (
    AlignConfig,
    DistanceConfig,
    FinishFitConfig,
    FitConfig,
    FlowFitConfig,
    ReverseFitConfig,
)

__all__ = [
    "AlignConfig",
    "Average",
    "ClassifyMethod",
    "ClassifyNoise",
    "DistanceConfig",
    "FinishFitConfig",
    "FitConfig",
    "FlowConfig",
    "FlowFitConfig",
    "ModelConfig",
    "ReadingConfig",
    "ReverseConfig",
    "ReverseFitConfig",
    "RunConfig",
    "ScoreNoise",
    "SplitName",
    "TrackerName",
    "TransformerConfig",
    "WatchConfig",
    "load_recipe",
    "recipe_head",
    "recipe_names",
    "smoke",
    "smoke_fit",
]
