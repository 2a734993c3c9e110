"""Every setting of the project: frozen models with their defaults.

Defaults live here, in `config_model` and in `config_fit`, and nowhere else.  A recipe (recipes/*.yaml) is a complete,
named `RunConfig`.
"""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from biflow.config_base import Config, parse_config, to_yaml
from biflow.config_fit import AlignConfig, DistanceConfig, Fit, FitConfig, FlowFitConfig, Kind, ReverseFitConfig, Share
from biflow.config_model import FlowConfig, ModelConfig, ReverseConfig, TransformerConfig
from biflow.errors import InputError, nearest

__all__ = [
    "AlignConfig",
    "Average",
    "ClassifyMethod",
    "ClassifyNoise",
    "DistanceConfig",
    "FitConfig",
    "FlowConfig",
    "FlowFitConfig",
    "Kind",
    "LabelSchedule",
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
    "recipe_names",
    "recipe_text",
    "smoke",
    "smoke_fit",
]

ScoreNoise = Literal["uniform", "training"]
Average = Literal["mean", "importance"]
ClassifyMethod = Literal["gradient", "steps", "bayes"]
ClassifyNoise = Literal["training", "uniform", "none"]
SplitName = Literal["train", "test"]
LabelSchedule = Literal["balanced", "random"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


class ReadingConfig(Config):
    """How the images of a data set are read.

    crop: of images of other sizes: "adm" halves by averaging while it can, then bicubic (ADM, arXiv 2105.05233);
    "tarflow" resizes the shorter side in one bilinear step (TARFlow's code); both cut out the centre.
    flip: mirror half of the training images, drawn anew each time.  background: behind transparent parts.
    rejected_share: of the files of a folder that may be unreadable before it is an error.
    test_share: of the images, chosen by their names or places alone, that training never sees; data with a test set of
    their own, such as the digits, keep that.
    workers: processes that read ahead, 0 for none.
    cache: "memory" keeps every image of a folder or a stored hub data set, decoded, once it was read; "none" reads it
    anew each time; "auto" is "memory" where there are no workers and all images take at most a GiB.
    image_column, label_column: of hub data sets, where their types and names leave it open.
    streaming: read a hub data set as it comes, not stored here; shuffle_buffer: so many of its images are shuffled at
    a time.
    """

    crop: Literal["adm", "tarflow"] = "adm"
    flip: bool = False
    background: Literal["white", "black", "grey"] = "white"
    rejected_share: Share = 0.05
    test_share: Share = 0.0
    workers: NonNegativeInt = 0
    cache: Literal["auto", "memory", "none"] = "auto"
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt = 4096

    @model_validator(mode="after")
    def _what_is_kept_is_read_once(self) -> Self:
        if self.cache == "memory" and (self.workers or self.streaming):
            what = f"{self.workers} workers" if self.workers else "a stream"
            raise ValueError(
                f"Expected a data set that one process reads, for cache 'memory'; got {what}. "
                "Set reading.workers=0 and reading.streaming=false, or reading.cache=auto."
            )
        return self

    @model_validator(mode="after")
    def _streams_are_not_split(self) -> Self:
        if self.streaming and self.test_share:
            raise ValueError(
                f"Expected test_share 0 for a stream, which is read as it comes; got {self.test_share}. "
                "Set reading.test_share=0 or reading.streaming=false."
            )
        return self


class WatchConfig(Config):
    """What shows how a run goes, beside its log; none of it changes the training.

    trackers: where numbers and pictures are sent.  preview_every: steps between two grids of samples from the same
    noise, 0 for none.  validate_every: steps between two measurements of the loss on images held out, 0 for none, on
    this many batches of the training's size.
    """

    trackers: tuple[TrackerName, ...] = ()
    preview_every: NonNegativeInt = 0
    validate_every: NonNegativeInt = 0
    validate_batches: PositiveInt = 4


class RunConfig(Config):
    """A whole training run; what a recipe holds and what a run folder records.

    stage: "both" fits the flow, then the reverse model to the frozen flow; "joint" fits both at once, the reverse model
    to the flow as it is at each step, with the settings of fit_flow and of fit_reverse only its loss; "flow" fits the
    flow alone; "reverse" fits a reverse model to the flow of the model folder `flow_from`.
    """

    stage: Literal["both", "joint", "flow", "reverse"] = "both"
    flow_from: str | None = None
    seed: NonNegativeInt = 0
    data: str = "digits"
    reading: ReadingConfig = ReadingConfig()
    model: ModelConfig
    fit_flow: FlowFitConfig = FlowFitConfig()
    fit_reverse: ReverseFitConfig | None = ReverseFitConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _aligned_places_exist(self) -> Self:
        layers = self.model.flow.block_layers
        for block, layer in self.fit_flow.align.places if self.fit_flow.align else ():
            if block > len(layers) or layer > layers[block - 1]:
                depth = f"of block {block} from 1 to {layers[block - 1]}, " if block <= len(layers) else ""
                raise ValueError(
                    f"Expected blocks from 1, at the data, to {len(layers)}, and layers {depth}counted from 1; "
                    f"got block {block}, layer {layer}. Change fit_flow.align.places."
                )
        return self

    @model_validator(mode="after")
    def _stage_has_what_it_trains(self) -> Self:
        if self.stage != "flow" and self.model.reverse is None:
            raise ValueError(
                f"Expected model.reverse for stage {self.stage!r}; got none. Describe it, or set stage=flow."
            )
        if self.stage != "flow" and self.fit_reverse is None:
            raise ValueError(f"Expected fit_reverse for stage {self.stage!r}; got none. Describe it.")
        if (self.stage == "reverse") != (self.flow_from is not None):
            raise ValueError(
                f"Expected flow_from, a model folder, for stage 'reverse' and for no other; got {self.flow_from!r} "
                f"for stage {self.stage!r}. Set both or neither."
            )
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("biflow") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe, given its name or the path of a file of the user's own."""
    if name in recipe_names():
        return (resources.files("biflow") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text in UTF-8"
            raise InputError(f"Expected a readable recipe file; got {name!r} ({why}).") from None
    raise InputError(f"Unknown recipe {name!r}; {nearest(name, recipe_names())}")


def load_recipe(name: str, overrides: Iterable[str] = (), *, small: bool = False) -> RunConfig:
    """A recipe by name or path, at its smoke size if small, with `path=value` overrides applied and checked.

    >>> load_recipe("biflow_digits", ["fit_flow.steps=10"]).fit_flow.steps
    10
    """
    origin, text = f"recipe {name!r}", recipe_text(name)
    if small:
        text = to_yaml(smoke(parse_config(RunConfig, text, origin=origin)))
    return parse_config(RunConfig, text, overrides, origin=origin)


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, small enough for a test on a CPU."""
    fits = {"fit_flow": smoke_fit(config.fit_flow), "fit_reverse": config.fit_reverse and smoke_fit(config.fit_reverse)}
    return config.model_copy(update=fits)


def smoke_fit(config: Fit) -> Fit:
    """The same training, a few steps of it."""
    small = {"steps": 20, "batch_size": 32, "warmup_steps": 5, "log_every": 5, "save_every": 10}
    return config.model_copy(update=small)
