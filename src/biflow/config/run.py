"""The settings of a whole run: its data, how they are read, its stages, and what watches it."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from biflow.config.base import Config
from biflow.config.model import ModelConfig
from biflow.config.training import FlowFitConfig, ReverseFitConfig, Share

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
