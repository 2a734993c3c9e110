"""The settings of a training: how one model is fitted, aligned, and compared."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from biflow.config.base import Config

Share = Annotated[float, Field(ge=0, lt=1)]


class FitConfig(Config):
    """How one model is trained.

    optimizer: "adamw", or "muon": Muon for the weight matrices inside transformer layers, at muon_learning_rate, and
    AdamW at learning_rate for everything else.  Both rates warm up over warmup_steps, then stay (schedule "constant")
    or fall ("cosine"), that of AdamW to last_learning_rate.  clip_norm: largest norm of the gradient, none for no
    limit.  ema_decay: of the averaged weights, 0 for the last ones.  precision: of the network's arithmetic in a
    forward pass (autocast); weights, affine maps and log-determinants are float32; "float16" scales the loss, so that
    small gradients do not vanish.  accumulate: parts that each process's batch is taken in, one after another.
    sharding: "ddp" keeps the whole model in every process, "fsdp" spreads it over them (FSDP2).  recompute: keep only
    the input of every transformer layer, and evaluate the layer again for its gradient.  compile: run each transformer
    layer through torch.compile; none: on a GPU, where it pays, and not on a CPU.  max_skipped: steps in a row that may
    be skipped because the loss or its gradient is not finite.
    Checkpoints are written every save_every steps; kept are the last keep_last, those at multiples of keep_every, and
    the one whose metric best_by, of those logged, is lowest.
    """

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    muon_learning_rate: PositiveFloat = 2e-2
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
    compile: bool | None = None
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
        if self.encoder == "classifier" and (unread := self.network or self.input_size):
            raise ValueError(
                f"Expected no network or input_size for the encoder 'classifier', which is trained on the run's own "
                f"images; got {unread!r}. Set encoder to dinov2, dinov3, clip, mae or module, or leave it out."
            )
        if self.encoder != "classifier" and self.network is None:
            raise ValueError(
                f"Expected network for the encoder {self.encoder!r}; got none. "
                "Set it to a hub name or a folder, or for a module to package.module:name."
            )
        if self.sweeps > 1 and self.strategy != "reverse":
            raise ValueError(
                f"Expected sweeps 1 with strategy {self.strategy!r}; got {self.sweeps}. Only reverse has more."
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
