"""The settings of a model: its images, its flow, its reverse model."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from biflow.config.base import Config


def check_multiple(key: str, value: int, of: str, part: int) -> None:
    """Raise unless a value is a multiple of another."""
    if value % part:
        what, valid = key.removeprefix("image_"), max(1, round(value / part)) * part
        raise ValueError(f"Expected {key} to be a multiple of {of} {part}; got {value}. Nearest valid {what}: {valid}.")


class TransformerConfig(Config):
    """The transformers inside the blocks."""

    width: PositiveInt = 64
    """Hidden width C. The first thing to raise for larger images."""
    head_width: PositiveInt = 32
    """Width K of each attention head; divides width."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP relative to width. A SwiGLU has three matrices of that size, a GELU MLP two."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm (TARFlow) or RMS norm (BiFlow) before each sublayer."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The MLP of each layer: GELU (TARFlow) or SwiGLU (BiFlow)."""
    positions: Literal["learned", "rotary"] = "learned"
    """One learned vector per position, or rotary embeddings along rows and columns."""
    qk_norm: bool = False
    """RMS norm of queries and keys. Turn on if attention logits grow in long training."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.positions == "rotary" and self.head_width % 4:
            raise ValueError(
                f"Expected head_width to be a multiple of 4 with rotary positions; got {self.head_width}. "
                "Set positions=learned, or another head_width."
            )
        check_multiple("width", self.width, "head_width", self.head_width)
        return self


class FlowConfig(TransformerConfig):
    """The flow: causal affine blocks that read the patches in alternating directions."""

    blocks: PositiveInt = 4
    """Number S of flow blocks."""
    layers: PositiveInt | tuple[PositiveInt, ...] = 2
    """Transformer layers per block: one number, or a list, the block at the data first ("deep-shallow": STARFlow,
    arXiv 2506.06276)."""
    clip: PositiveFloat | None = None
    """Bound shift and log-scale to [-clip, clip] (norm control of BiFlow, arXiv 2512.10953). Set to 1 to train a
    reverse model, or if the flow diverges."""
    volume_preserving: bool = False
    """Shift patches without scaling them, under a prior with a variance for each value, measured after training."""

    @model_validator(mode="after")
    def _every_block_has_layers(self) -> Self:
        if isinstance(self.layers, tuple) and len(self.layers) != self.blocks:
            raise ValueError(
                f"Expected one number of layers for each of {self.blocks} blocks; got {len(self.layers)}. "
                "Set layers or blocks."
            )
        return self

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Layers of each block, the block at the data first."""
        return self.layers if isinstance(self.layers, tuple) else (self.layers,) * self.blocks


class ReverseConfig(TransformerConfig):
    """The learned reverse model: one block for each flow block, and one that denoises (BiFlow, arXiv 2512.10953)."""

    layers: PositiveInt = 2
    """Transformer layers per block."""
    class_tokens: PositiveInt = 1
    """Tokens in context that carry the class and the guidance strength."""
    strategy: Literal["alignment", "distillation", "naive"] = "alignment"
    """What is learned besides the image: "alignment" predicts the flow's states from the hidden states, "distillation"
    makes every block hand on such a state, "naive" learns nothing else."""
    denoising: Literal["learned", "score", "none"] = "learned"
    """How the training noise is removed: by one more block, by a score step of the flow after the pass, or not."""
    normalise: bool = True
    """Compare the flow's states in units of their own root mean square, so that no level dominates the loss."""
    guidance: Literal["trained", "two_passes"] = "two_passes"
    """"trained" makes the strength an input, so that one pass gives any strength; "two_passes" extrapolates when
    sampling, at twice the cost."""
    max_guidance: PositiveFloat = 2.0
    """Largest strength seen in training of trained guidance."""


class ModelConfig(Config):
    """A model: its images, its flow, and its reverse model if there is one."""

    codec: Annotated[str, Field(pattern=r"^(pixels|vae:.+)$")] = "pixels"
    """What the flow models: "pixels", or "vae:NAME" for the latents of that diffusers autoencoder, whose sizes
    image_size and channels then are."""
    image_size: PositiveInt
    """Side of the square images, or of their latents."""
    channels: PositiveInt
    """1 for grey images, 3 for RGB, or the channels of the latents."""
    patch_size: PositiveInt
    """Side of a patch. A smaller patch means a longer sequence: better likelihood, more compute."""
    num_classes: NonNegativeInt = 0
    """Number of classes; 0 for an unconditional model."""
    noise_std: NonNegativeFloat
    """Standard deviation of the Gaussian noise added to training images in [-1, 1]. Larger values give better samples,
    smaller ones better likelihoods."""
    dequantise: bool = False
    """Add uniform noise within a grey level, for likelihoods of 8-bit images."""
    flow: FlowConfig = FlowConfig()
    reverse: ReverseConfig | None = None
    """The reverse model; none for a flow alone."""

    @model_validator(mode="after")
    def _sizes_and_codec_fit(self) -> Self:
        check_multiple("image_size", self.image_size, "patch_size", self.patch_size)
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
    def noise_shape(self) -> tuple[int, int]:
        """(T, D)."""
        return self.num_patches, self.patch_dim

    @property
    def null_label(self) -> int:
        """The label that means "no class": the last row of the class table."""
        return self.num_classes
