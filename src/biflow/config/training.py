"""The settings of a training stage: how one model is fitted, aligned, and compared."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from biflow.config.base import Config

Share = Annotated[float, Field(ge=0, lt=1)]


class FitConfig(Config):
    """How one model is trained."""

    steps: PositiveInt = 2000
    """Training steps."""
    batch_size: PositiveInt = 64
    """Images per step, over all processes."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """"muon" trains the weight matrices inside transformer layers by Muon and everything else by AdamW; it needs fewer
    steps."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: PositiveFloat = 2e-2
    """Peak learning rate of Muon; unused by adamw."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up of the learning rates."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of matrices; biases, gains and norms have none."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's betas."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rates after warm-up: fall to last_learning_rate, or stay."""
    last_learning_rate: NonNegativeFloat = 0.0
    """AdamW's learning rate at the end of the cosine; Muon's falls by the same factor."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest gradient norm; none for no clipping."""
    ema_decay: Share = 0.99
    """Decay of the averaged weights, which become the model's; 0 for the last weights. Raise it for longer runs: 0.9999
    for the papers'."""
    label_drop: Share = 0.1
    """Share of labels replaced by the null label, which guidance needs."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast precision of the networks. Weights, affine maps and log-determinants stay float32; float16 scales the
    loss. Use bfloat16 on recent GPUs."""
    accumulate: PositiveInt = 1
    """Parts that each process's batch is computed in, to save memory."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """"ddp" keeps the whole model in every process, "fsdp" shards it (FSDP2) for models that do not fit."""
    recompute: bool = False
    """Activation checkpointing: recompute each transformer layer in the backward pass, to save memory."""
    compile: bool | None = None
    """Compile transformer layers with torch.compile; none: on a GPU only."""
    max_skipped: PositiveInt = 20
    """Steps in a row that may be skipped because loss or gradient is NaN or Inf, before training stops."""
    log_every: PositiveInt = 25
    """Steps between two lines of the log."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Checkpoints kept, the newest."""
    keep_every: PositiveInt | None = None
    """Also keep the checkpoints of every multiple of this many steps."""
    best_by: str | None = None
    """Also keep the checkpoint whose logged metric of this name is lowest, such as test_loss."""


class AlignConfig(Config):
    """Alignment of the flow's features with those of a frozen vision encoder (FlowBack, arXiv 2511.22345)."""

    encoder: Literal["dinov2", "dinov3", "clip", "mae", "efficientnet", "classifier", "module"] = "classifier"
    """The encoder: a pretrained one (efficientnet needs no download), a small classifier trained first on the run's own
    images, or a module of yours."""
    network: str | None = None
    """Its weights: a Hugging Face name or local folder, or for "module" package.module:name."""
    input_size: PositiveInt | None = None
    """Image size that the encoder is given; none for its own."""
    strategy: Literal["forward", "detach", "reverse", "reverse_literal", "reverse_sequential"] = "reverse"
    """Which blocks the alignment trains; see docs/alignment.md."""
    sweeps: PositiveInt = 1
    """Fixed-point sweeps of "reverse"; more keep more of the exact gradient."""
    layers: tuple[tuple[PositiveInt, PositiveInt], ...]
    """The aligned layers, a list of [block, layer], both from 1, block 1 at the data. The paper's best are the last two
    blocks at three quarters of their depth."""
    distance: Literal["cosine", "mse", "l1"] = "cosine"
    """Distance between projected and encoder features, patch by patch."""
    hidden_width: PositiveInt | None = None
    """Hidden width of the three-layer projector; none for the flow's width."""
    weight: PositiveFloat = 0.1
    """Weight of the alignment, averaged over layers, relative to the negative log-likelihood in nats per dimension."""

    @model_validator(mode="after")
    def _something_is_aligned_with_an_encoder(self) -> Self:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(
                f"Expected one or more different layers, each [block, layer]; got {[list(p) for p in self.layers]}."
            )
        if self.encoder == "classifier" and (unread := self.network or self.input_size):
            raise ValueError(
                f"Expected no network or input_size for the encoder 'classifier', trained on the run's images; got "
                f"{unread!r}. Set encoder to dinov2, dinov3, clip, mae, efficientnet or module, or leave it out."
            )
        if self.encoder == "efficientnet" and self.network is not None:
            raise ValueError(
                f"Expected no network for the encoder 'efficientnet', whose weights come from a package; got "
                f"{self.network!r}. Leave it out."
            )
        if self.encoder not in PACKAGED and self.network is None:
            kind = "package.module:name" if self.encoder == "module" else "a hub name or a folder"
            raise ValueError(f"Expected network for the encoder {self.encoder!r}; got none. Set it to {kind}.")
        if self.sweeps > 1 and self.strategy != "reverse":
            raise ValueError(
                f"Expected sweeps 1 with strategy {self.strategy!r}; got {self.sweeps}. Set strategy=reverse for more."
            )
        return self


class FlowFitConfig(FitConfig):
    """How a flow is trained."""

    align: AlignConfig | None = None
    """Alignment with a vision encoder; none trains by likelihood alone."""


Kind = Literal["mse", "l1", "vgg", "lpips", "convnextv2", "dinov2", "efficientnet", "classifier", "module"]
WITHOUT_NETWORK = {"mse", "l1"}
OWN = {*WITHOUT_NETWORK, "classifier"}  # kinds without pretrained networks, in the space that the flow models
PACKAGED = {"classifier", "efficientnet"}  # networks without a file or name to give
PUBLISHED_NETWORKS = {"convnextv2": "facebook/convnextv2-base-22k-224", "dinov2": "facebook/dinov2-base"}


class DistanceConfig(Config):
    """One distance between the reverse model's image and its target."""

    kind: Kind
    """"mse" and "l1" compare values, the others the features of a frozen network; "classifier" is a small one trained
    first on the run's own images, "efficientnet" one that needs no download."""
    weight: PositiveFloat = 1.0
    """Weight of this distance in the loss."""
    network: str | None = None
    """Weights: a Hugging Face name or local folder (convnextv2, dinov2), torchvision's VGG-16 file (vgg, lpips), or
    package.module:name of a torch module, or of what returns one (module)."""
    calibration: str | None = None
    """LPIPS' file of linear layers."""
    input_size: PositiveInt | None = None
    """Side of the random crop that the network sees; none for the network's own size, or whole images for "module"."""
    space: Literal["latents", "images"] = "latents"
    """Compare what the flow models, or what the codec decodes it to. Pretrained networks default to images."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kind = str(values.get("kind"))
        usual = {"space": "latents" if kind in OWN else "images", "network": PUBLISHED_NETWORKS.get(kind)}
        return usual | {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _kind_has_what_it_reads_and_nothing_else(self) -> Self:
        needs = [] if self.kind in OWN | PACKAGED else ["network", *["calibration"] * (self.kind == "lpips")]
        if missing := [key for key in needs if getattr(self, key) is None]:
            raise ValueError(
                f"Expected {' and '.join(missing)} for the distance {self.kind!r}; got none. "
                f"Set {'network to package.module:name' if self.kind == 'module' else 'the path of the file'}."
            )
        given = {key for key in ("network", "calibration", "input_size") if getattr(self, key) is not None}
        if ignored := sorted(given - {*needs, *["input_size"] * (self.kind not in OWN)}):
            what = " or ".join(ignored)
            raise ValueError(f"Expected no {what} for the distance {self.kind!r}, which does not use it. Leave it out.")
        if self.kind == "classifier" and self.space == "images":
            raise ValueError(
                "Expected space=latents for the distance 'classifier', which is trained on what the flow models."
            )
        return self


class FinishFitConfig(FitConfig):
    """How a reverse model is finished: trained on, while the Fréchet distance of its samples is lowered (FD-Loss, arXiv
    2604.28190)."""

    steps: PositiveInt = 200
    """Training steps."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up of the learning rates."""
    features: DistanceConfig = DistanceConfig(kind="efficientnet")
    """The frozen network in whose features the distance is lowered, as in fit_reverse.distances. Measure samples in
    other features too: a metric that was trained on says little."""
    population: PositiveInt = 4000
    """Samples that mean and covariance are averaged over."""
    guidance: NonNegativeFloat = 0.0
    """Guidance strength of the samples."""

    @model_validator(mode="after")
    def _features_are_a_networks(self) -> Self:
        if self.features.kind in WITHOUT_NETWORK:
            raise ValueError(
                f"Expected a network for the features; got {self.features.kind!r}. Set features={{kind: efficientnet}}."
            )
        return self


Fit = TypeVar("Fit", bound=FitConfig)


class ReverseFitConfig(FitConfig):
    """How a reverse model is trained."""

    distances: tuple[DistanceConfig, ...] = (DistanceConfig(kind="mse"),)
    """Distances between its image and the target; their weighted sum is added to the alignment of hidden states."""
    adaptive_power: NonNegativeFloat = 0.0
    """Power p of the adaptive weight 1 / (D + c)^p of each distance D of each image, without gradient (BiFlow, arXiv
    2512.10953, eq. 7); 0 turns it off, 1 is the paper's."""
    adaptive_offset: PositiveFloat = 0.01
    """Offset c of the adaptive weight, in units of D, a mean over values. Papers that sum D over N values state N times
    this."""

    @model_validator(mode="after")
    def _image_is_compared(self) -> Self:
        if not self.distances:
            raise ValueError("Expected one distance or more; got none. The simplest is distances=[{kind: mse}].")
        return self
