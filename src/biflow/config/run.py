"""The settings of a whole run: its data, how they are read, its stages, and what watches it."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from biflow.config.base import Config
from biflow.config.model import ModelConfig
from biflow.config.training import FinishFitConfig, FlowFitConfig, ReverseFitConfig, Share

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class PictureReading(Config):
    """How an image file is turned into pixels."""

    crop: Literal["adm", "tarflow"] = "adm"
    """How images of other sizes are resized before the centre is cropped: "adm" halves by averaging, then bicubic (ADM,
    arXiv 2105.05233); "tarflow" resizes the shorter side in one bilinear step."""
    background: Literal["white", "black", "grey"] = "white"
    """Colour behind transparent parts."""


class ReadingConfig(PictureReading):
    """How the images of a data set are read."""

    flip: bool = False
    """Mirror half of the training images, drawn anew at each step."""
    rejected_share: Share = 0.05
    """Share of a folder's files that may be unreadable before it is an error."""
    test_share: Share = 0.0
    """Share of images held out from training, chosen by file name, by index or, in arrays, by the image's bytes; copies
    with their original. A data set with a test set of its own keeps that."""
    workers: NonNegativeInt = 0
    """Processes that read ahead; 0 reads in the training process. Raise it if images are large."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Keep decoded images in memory once read ("memory"), decode anew each time ("none"), or keep them if there are no
    workers and all take at most a GiB ("auto")."""
    image_column: str | None = None
    """Image column of a Hugging Face data set, if its types and names leave it open."""
    label_column: str | None = None
    """Label column of a Hugging Face data set, likewise."""
    streaming: bool = False
    """Read a Hugging Face data set as a stream, without storing it."""
    shuffle_buffer: PositiveInt = 4096
    """Images of a stream that are shuffled at a time."""

    @model_validator(mode="after")
    def _streams_are_neither_kept_nor_split(self) -> Self:
        if self.cache == "memory" and (self.workers or self.streaming):
            what = f"{self.workers} workers" if self.workers else "a stream"
            raise ValueError(f"Expected one process to read, for cache 'memory'; got {what}. Set reading.cache=auto.")
        if self.streaming and self.test_share:
            raise ValueError(f"Expected test_share 0 for a stream; got {self.test_share}. Set reading.test_share=0.")
        return self


class WatchConfig(Config):
    """Logging, previews and validation; none of it changes the training."""

    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that get metrics and previews."""
    preview_every: NonNegativeInt = 0
    """Steps between two grids of samples from the same noise; 0 for none."""
    validate_every: NonNegativeInt = 0
    """Steps between two measurements of the loss on held-out images; 0 for none."""
    validate_batches: PositiveInt = 4
    """Batches of the training size in each of them."""


class RunConfig(Config):
    """A training run: what a recipe describes and a run folder records."""

    stage: Literal["both", "joint", "flow", "reverse"] = "both"
    """"both" trains the flow, then the reverse model on the frozen flow; "joint" trains both at once, with the settings
    of fit_flow and the losses of both; "flow" trains the flow alone; "reverse" a reverse model for an existing flow."""
    flow_from: str | None = None
    """Model folder with the flow, for stage "reverse"."""
    seed: NonNegativeInt = 0
    """Seed of weights, batches and noise."""
    process_timeout: PositiveInt = 300
    """Seconds that one of several processes waits for another before training stops; may change on resume."""
    data: str = "digits"
    """Data set: digits, folder:PATH, npz:FILE, idx:FOLDER, hf:NAME or latents:PATH."""
    reading: ReadingConfig = ReadingConfig()
    model: ModelConfig
    fit_flow: FlowFitConfig = FlowFitConfig()
    fit_reverse: ReverseFitConfig | None = ReverseFitConfig()
    """How the reverse model is trained; none for stage "flow"."""
    fit_finish: FinishFitConfig | None = None
    """How the reverse model is finished, after all else; none leaves it as it is."""
    watch: WatchConfig = WatchConfig()

    @property
    def modules(self) -> list[str]:
        """The modules, package.module:name, that this run imports: code that the recipe chooses."""
        align, fit_reverse = self.fit_flow.align, self.fit_reverse
        chosen = [align.network] if align and align.encoder == "module" and self.stage != "reverse" else []
        distances = fit_reverse.distances if fit_reverse and self.stage != "flow" else ()
        finish = (self.fit_finish.features,) if self.fit_finish else ()
        chosen += [each.network for each in (*distances, *finish) if each.kind == "module"]
        return [name for name in chosen if name]

    @model_validator(mode="after")
    def _aligned_layers_exist(self) -> Self:
        layers = self.model.flow.block_layers
        for block, layer in self.fit_flow.align.layers if self.fit_flow.align else ():
            if block > len(layers) or layer > layers[block - 1]:
                depth = f"of block {block} from 1 to {layers[block - 1]}, " if block <= len(layers) else ""
                raise ValueError(
                    f"Expected blocks from 1, at the data, to {len(layers)}, and layers {depth}counted from 1; "
                    f"got block {block}, layer {layer}. Change fit_flow.align.layers."
                )
        return self

    @model_validator(mode="after")
    def _stage_has_what_it_trains(self) -> Self:
        for key, value in {"model.reverse": self.model.reverse, "fit_reverse": self.fit_reverse}.items():
            if self.stage != "flow" and value is None:
                raise ValueError(f"Expected {key} for stage {self.stage!r}; got none. Describe it, or set stage=flow.")
        if self.stage == "reverse" and self.flow_from is None:
            raise ValueError("Expected flow_from, the model folder of the flow, for stage 'reverse'; got none. Set it.")
        if self.stage != "reverse" and self.flow_from is not None:
            raise ValueError(f"Expected no flow_from for stage {self.stage!r}. Leave it out, or set stage=reverse.")
        return self

    @model_validator(mode="after")
    def _finishing_fits_the_model(self) -> Self:
        finish, reverse = self.fit_finish, self.model.reverse
        if finish and self.stage == "flow":
            raise ValueError("Expected no fit_finish for stage 'flow', which has no reverse model. Leave it out.")
        if finish is None or reverse is None:
            return self
        if reverse.denoising != "learned":
            raise ValueError(
                f"Expected model.reverse.denoising 'learned' with fit_finish; got {reverse.denoising!r}. "
                "Set denoising=learned, or fit_finish=null."
            )
        if finish.guidance and not self.model.num_classes:
            raise ValueError(
                f"Expected fit_finish.guidance 0 for a model without classes; got {finish.guidance:g}. Leave it out."
            )
        if reverse.guidance == "trained" and finish.guidance > reverse.max_guidance:
            raise ValueError(
                f"Expected fit_finish.guidance of at most {reverse.max_guidance:g}; got {finish.guidance:g}. Lower it, "
                "or raise model.reverse.max_guidance."
            )
        return self
