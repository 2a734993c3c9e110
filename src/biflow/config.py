"""Every setting of the project: frozen models with their defaults.

Defaults live here and nowhere else.  A recipe (recipes/*.yaml) is a complete, named `RunConfig`.
"""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from biflow.config_base import Config, parse_config, to_yaml
from biflow.errors import InputError, nearest

ScoreNoise = Literal["uniform", "training"]
Average = Literal["mean", "importance"]
ClassifyMethod = Literal["gradient", "steps", "bayes"]
ClassifyNoise = Literal["training", "uniform", "none"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]
Share = Annotated[float, Field(ge=0, lt=1)]


class TransformerConfig(Config):
    """The transformers inside the blocks.

    mlp_ratio is the hidden width of the MLP over `width`; a SwiGLU has three matrices of that size, a GELU MLP two.
    positions: one learned vector a place, or rotary along rows and columns.  qk_norm: RMS norm of queries and keys.
    """

    width: PositiveInt = 64
    head_width: PositiveInt = 32
    mlp_ratio: PositiveFloat = 4.0
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    positions: Literal["learned", "rotary"] = "learned"
    qk_norm: bool = False

    @model_validator(mode="after")
    def _head_splits_into_turned_pairs(self) -> Self:
        if self.positions == "rotary" and self.head_width % 4:
            raise ValueError(
                f"Expected head_width to be a multiple of 4 with rotary positions; got {self.head_width}. "
                "Set positions=learned, or another head_width."
            )
        return self

    @model_validator(mode="after")
    def _width_splits_into_heads(self) -> Self:
        if self.width % self.head_width:
            raise ValueError(
                f"Expected width to be a multiple of head_width {self.head_width}; got {self.width}. "
                f"Nearest valid width: {max(1, round(self.width / self.head_width)) * self.head_width}."
            )
        return self


class FlowConfig(TransformerConfig):
    """The forward flow: `blocks` causal affine blocks that read the patches in alternating directions.

    layers: of every block, or a list with one number a block, the block at the data first ("deep-shallow": STARFlow,
    arXiv 2506.06276).  clip: shift and log-scale are held within [-clip, clip] (norm control of BiFlow, arXiv
    2512.10953); none leaves them free.  volume_preserving: patches are shifted but not scaled, and the prior has a
    variance of its own for every value, measured after training.
    """

    blocks: PositiveInt = 4
    layers: PositiveInt | tuple[PositiveInt, ...] = 2
    clip: PositiveFloat | None = None
    volume_preserving: bool = False

    @model_validator(mode="after")
    def _every_block_has_layers(self) -> Self:
        if isinstance(self.layers, tuple) and len(self.layers) != self.blocks:
            raise ValueError(
                f"Expected one number of layers for each of {self.blocks} blocks; got {len(self.layers)}. "
                "Set blocks to the length of layers."
            )
        return self

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Layers of each block, the block at the data first."""
        return self.layers if isinstance(self.layers, tuple) else (self.layers,) * self.blocks


class ReverseConfig(TransformerConfig):
    """The learned reverse model: one block for each flow block, and one that denoises.

    strategy: what is learned beside the image (BiFlow, arXiv 2512.10953, section on learning the inverse): "alignment"
    reads the flow's states out of the hidden states through heads; "distillation" makes every block hand on such a
    state itself; "naive" learns nothing beside the image.
    denoising: "learned" by one more block; by the flow's "score" after the pass; or "none", which leaves the noise.
    normalise: the flow's states are compared in units of their own root mean square, so that no level outweighs others.
    guidance: "trained" makes the strength a condition of the network, so that one pass gives any strength up
    to `max_guidance`; "two_passes" extrapolates at sampling time, from a pass with and one without the label.
    guide: "blocks" guides every block; "output" the last one only.
    hand_over: what a block passes on while guidance is trained: the recovered conditional state (BiFlow, eq. 5,
    as printed), so that guidance adds up over the blocks when sampling, or the guided state itself, with which it
    hardly guides (docs/results/model.reverse.hand_over).
    """

    layers: PositiveInt = 2
    class_tokens: PositiveInt = 1
    strategy: Literal["alignment", "distillation", "naive"] = "alignment"
    denoising: Literal["learned", "score", "none"] = "learned"
    normalise: bool = True
    guidance: Literal["trained", "two_passes"] = "two_passes"
    max_guidance: PositiveFloat = 2.0
    guide: Literal["blocks", "output"] = "blocks"
    hand_over: Literal["guided", "recovered"] = "recovered"


class ModelConfig(Config):
    """What a model folder describes: the images, the flow, and the reverse model if there is one.

    codec: what the flow models: "pixels", or "vae:NAME" for the latents of that autoencoder, whose sizes image_size
    and channels then are.  num_classes: 0 for an unconditional model.  The flow learns the density of images with
    noise: uniform within a grey level if `dequantise`, and Gaussian of standard deviation noise_std on top.
    """

    codec: Annotated[str, Field(pattern=r"^(pixels|vae:.+)$")] = "pixels"
    image_size: PositiveInt
    channels: PositiveInt
    patch_size: PositiveInt
    num_classes: NonNegativeInt = 0
    noise_std: NonNegativeFloat
    dequantise: bool = False
    flow: FlowConfig = FlowConfig()
    reverse: ReverseConfig | None = None

    @model_validator(mode="after")
    def _image_splits_into_patches(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"Expected image_size to be a multiple of patch_size {self.patch_size}; got {self.image_size}. "
                f"Nearest valid size: {max(1, round(self.image_size / self.patch_size)) * self.patch_size}."
            )
        return self

    @model_validator(mode="after")
    def _only_pixels_have_grey_levels(self) -> Self:
        if self.dequantise and self.codec != "pixels":
            raise ValueError(f"Expected codec pixels with dequantise; got {self.codec!r}. Set dequantise=false.")
        return self

    @property
    def num_patches(self) -> int:
        """T, the length of the sequence."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """D, the values in one patch."""
        return self.channels * self.patch_size**2

    @property
    def null_label(self) -> int:
        """The label that means "no class": the last row of the class table."""
        return self.num_classes


class FitConfig(Config):
    """How one model is trained.

    The learning rate warms up over warmup_steps, then stays (schedule "constant") or falls to last_learning_rate
    ("cosine").  clip_norm: largest norm of the gradient, none for no limit.  ema_decay: of the averaged weights, 0 for
    the last ones.  precision: of the network's arithmetic in a forward pass (autocast); weights, affine maps and
    log-determinants are float32; "float16" scales the loss, so that small gradients do not vanish.  accumulate: parts
    that each process's batch is taken in, one after another.  sharding: "ddp" keeps the whole model in every process,
    "fsdp" spreads it over them (FSDP2).  recompute: keep only the input of every transformer layer, and evaluate the
    layer again for its gradient.  compile: run the model through torch.compile, which needs a C++ compiler on a CPU.
    max_skipped: steps in a row that may be skipped because the loss or its gradient is not finite.
    Checkpoints are written every save_every steps; kept are the last keep_last, those at multiples of keep_every, and
    the one whose metric best_by, of those logged, is lowest.
    """

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    schedule: Literal["cosine", "constant"] = "cosine"
    last_learning_rate: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = 1.0
    ema_decay: Share = 0.99
    label_drop: Share = 0.1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: PositiveInt = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    recompute: bool = False
    compile: bool = False
    max_skipped: PositiveInt = 20
    log_every: PositiveInt = 25
    save_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    best_by: str | None = None


Place = tuple[PositiveInt, PositiveInt]


class AlignConfig(Config):
    """Alignment of the flow's features with those of a frozen vision encoder (FlowBack, arXiv 2511.22345).

    encoder: "dinov2", "dinov3", "clip" or "mae" (network: a name on the Hugging Face hub or a local folder),
    "classifier" (a small one, trained beforehand on what the flow models of the run's own images), or "module"
    (network: "package.module:name").  input_size: of the images it is given; none is the network's own, or the images'.
    strategy: which blocks learn from it; the ways of `models/feature_ways.py`, with that many sweeps of `reverse`.
    places: pairs of a block and a layer of it, both counted from 1, block 1 at the data.
    distance: between the features, projected by three layers of hidden_width (none is the flow's width, as the paper's
    1024 is), and the encoder's, patch by patch; its mean over places has this weight beside the nats per dimension.
    """

    encoder: Literal["dinov2", "dinov3", "clip", "mae", "classifier", "module"] = "classifier"
    network: str | None = None
    input_size: PositiveInt | None = None
    strategy: Literal["forward", "detach", "reverse", "reverse_literal", "reverse_sequential"] = "reverse"
    sweeps: PositiveInt = 1
    places: tuple[Place, ...]
    distance: Literal["cosine", "mse", "l1"] = "cosine"
    hidden_width: PositiveInt | None = None
    weight: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _something_is_aligned_with_an_encoder(self) -> Self:
        if not self.places or len(set(self.places)) != len(self.places):
            raise ValueError(
                f"Expected one or more different places, each [block, layer]; got {[list(p) for p in self.places]}."
            )
        if (self.encoder == "classifier") != (self.network is None):
            raise ValueError(
                f"Expected network for every encoder but 'classifier'; got {self.network!r} for {self.encoder!r}. "
                "Set it to a hub name, a folder, or for a module to package.module:name."
            )
        return self


class FlowFitConfig(FitConfig):
    """How a flow is trained; align: its features with an encoder's, none for by likelihood alone."""

    align: AlignConfig | None = None


Kind = Literal["mse", "l1", "vgg", "lpips", "convnextv2", "dinov2", "classifier", "module"]
READ_BY: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # by kind: the keys that it needs, and may have
    "vgg": (("network",), ("input_size",)),
    "lpips": (("network", "calibration"), ("input_size",)),
    "convnextv2": (("network",), ("input_size",)),
    "dinov2": (("network",), ("input_size",)),
    "module": (("network",), ("input_size",)),
}
PUBLISHED_NETWORKS = {"convnextv2": "facebook/convnextv2-base-22k-224", "dinov2": "facebook/dinov2-base"}


class DistanceConfig(Config):
    """One term of what the reverse model's image is compared with the wanted one by.

    kind: "mse" and "l1" compare values.  The others compare what a frozen network makes of both: "convnextv2" and
    "dinov2" (network: a name on the Hugging Face hub or a local folder), "vgg" (network: torchvision's file of VGG-16
    weights), "lpips" (the same with LPIPS' file of linear layers as calibration), "classifier" (a small one, trained
    beforehand on what the flow models of the run's own images), and "module" (network: "package.module:name", a torch
    module, or a class or function that gives one).
    input_size: of the square that the network is given, a random part of both images; none is the network's own size,
    or the whole images for "module".
    space: "latents" are what the flow models, "images" what the codec decodes them to.
    """

    kind: Kind
    weight: PositiveFloat = 1.0
    network: str | None = None
    calibration: str | None = None
    input_size: PositiveInt | None = None
    space: Literal["latents", "images"] = "latents"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = str(values.get("kind"))
        own = {"mse", "l1", "classifier"}  # in the space that the flow models
        usual = {"space": "latents" if kind in own else "images", "network": PUBLISHED_NETWORKS.get(kind)}
        return usual | {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _kind_has_what_it_reads_and_nothing_else(self) -> Self:
        needs, takes = READ_BY.get(self.kind, ((), ()))
        if missing := [key for key in needs if getattr(self, key) is None]:
            raise ValueError(
                f"Expected {' and '.join(missing)} for the distance {self.kind!r}; got none. "
                f"Set {'network to package.module:name' if self.kind == 'module' else 'the path of the file'}."
            )
        given = {key for key in ("network", "calibration", "input_size") if getattr(self, key) is not None}
        if ignored := sorted(given - {*needs, *takes}):
            raise ValueError(
                f"Expected no {' or '.join(ignored)} for the distance {self.kind!r}, which does not use it. Leave it "
                "out, or choose another kind."
            )
        if self.kind == "classifier" and self.space == "images":
            raise ValueError(
                "Expected space=latents for the distance 'classifier', which is trained on what the flow models."
            )
        return self


Fit = TypeVar("Fit", bound=FitConfig)


class ReverseFitConfig(FitConfig):
    """How a reverse model is trained.

    distances: between its image and the wanted one; their weighted sum is added to the alignment of its hidden states.
    adaptive_power: p of the adaptive weight 1 / (D + c)^p that every term D of every image gets, without a gradient
    (BiFlow, arXiv 2512.10953, eq. 7); 0 for none.  adaptive_offset: c, in units of D, a mean: where a paper sums D over
    N values, its c is N times ours.
    """

    distances: tuple[DistanceConfig, ...] = (DistanceConfig(kind="mse"),)
    adaptive_power: NonNegativeFloat = 0.0
    adaptive_offset: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _image_is_compared(self) -> Self:
        if not self.distances:
            raise ValueError("Expected one distance or more; got none. The simplest is distances=[{kind: mse}].")
        return self


class ReadingConfig(Config):
    """How the images of a data set are read.

    crop: of images of other sizes: "adm" halves by averaging while it can, then bicubic (ADM, arXiv 2105.05233);
    "tarflow" resizes the shorter side in one bilinear step (TARFlow's code); both cut out the centre.
    flip: mirror half of the training images, drawn anew each time.  background: behind transparent parts.
    rejected_share: of the files of a folder that may be unreadable before it is an error.
    test_share: of the images, of each class alike, that training never sees; data with a test set of their own, such as
    the digits, keep that.
    workers: processes that read ahead, 0 for none.
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
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt = 4096

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
    small = {"steps": 30, "batch_size": 32, "warmup_steps": 5, "log_every": 5, "save_every": 10}
    return config.model_copy(update=small)
