"""The settings of a model: its images, its flow, its reverse model."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from biflow.config.base import Config


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
    def noise_shape(self) -> tuple[int, int]:
        """(T, D)."""
        return self.num_patches, self.patch_dim

    @property
    def null_label(self) -> int:
        """The label that means "no class": the last row of the class table."""
        return self.num_classes
