"""Every setting of the project: frozen models, YAML in and out, `path=value` overrides.

Defaults live here and nowhere else.  A recipe (recipes/*.yaml) is a complete, named `RunConfig`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from biflow.errors import InputError, nearest


class Config(BaseModel):
    """Base of all configs: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError(f"Expected a number or a word; got {str(value).lower()}.")
        return value


C = TypeVar("C", bound=Config)
ScoreNoise = Literal["uniform", "training"]
Average = Literal["mean", "importance"]
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
    log-determinants are float32.  compile: run the model through torch.compile, which needs a C++ compiler on a CPU.
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
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    log_every: PositiveInt = 25
    save_every: PositiveInt = 500


class RunConfig(Config):
    """A whole training run; what a recipe holds and what a run folder records.

    stage: "both" fits the flow, then the reverse model to the frozen flow; "joint" fits both at once with the settings
    of fit_flow, the reverse model to the flow as it is at each step; "flow" fits the flow alone.
    """

    stage: Literal["both", "joint", "flow"] = "both"
    seed: NonNegativeInt = 0
    data: str = "digits"
    model: ModelConfig
    fit_flow: FitConfig = FitConfig()
    fit_reverse: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _reverse_stage_has_a_model(self) -> Self:
        if self.stage != "flow" and self.model.reverse is None:
            raise ValueError(
                f"Expected model.reverse for stage {self.stage!r}; got none. Describe it, or set stage=flow."
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


def parse_config(kind: type[C], text: str, overrides: Iterable[str] = (), *, origin: str) -> C:
    """Text (YAML or JSON) -> a config of this kind; every fault is one `InputError`."""
    values = _load_yaml(text, origin)
    if not isinstance(values, dict):
        raise InputError(f"Expected keys and values in {origin}; got {type(values).__name__}.")
    for override in overrides:
        _apply_override(kind, values, override)
    return check_config(kind, values, origin=origin)


def check_config(kind: type[C], values: Mapping[str, Any], *, origin: str) -> C:
    """Plain values -> a config of this kind; every fault is one `InputError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(kind, error)}") from None


def to_yaml(config: Config) -> str:
    """The config as YAML that `parse_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def smoke(config: RunConfig) -> RunConfig:
    """The same recipe, small enough for a test on a CPU."""
    fits = {"fit_flow": smoke_fit(config.fit_flow), "fit_reverse": smoke_fit(config.fit_reverse)}
    return config.model_copy(update=fits)


def smoke_fit(config: FitConfig) -> FitConfig:
    """The same training, a few steps of it."""
    small = {"steps": 30, "batch_size": 32, "warmup_steps": 5, "log_every": 5, "save_every": 10}
    return config.model_copy(update=small)


def _apply_override(kind: type[Config], values: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"Expected an override of the form key.sub=value; got {override!r}.")
    *parents, last = path.split(".")
    for i, key in enumerate(parents):
        _check_key(kind, [*parents, last], i)
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            child = values[key] = {}
        values, kind = child, _field_config(kind, key)
    _check_key(kind, [last], 0, prefix=parents)
    values[last] = _load_yaml(value, f"the override {override!r}")


def _check_key(kind: type[Config], path: list[str], i: int, prefix: Iterable[str] = ()) -> None:
    if path[i] not in kind.model_fields:
        full = ".".join([*prefix, *path[: i + 1]])
        raise InputError(f"Unknown key {full!r}; {nearest(path[i], kind.model_fields)}")


def _field_config(kind: type[Config], key: str) -> type[Config]:
    """The config class of a nested field, also when the field may be absent."""
    for config in _nested_configs(kind, key):
        return config
    raise InputError(f"Expected a key that has sub-keys; got {key!r}, which holds a single value.")


def _nested_configs(kind: type[Config], key: str) -> Iterator[type[Config]]:
    annotation = kind.model_fields[key].annotation
    for candidate in getattr(annotation, "__args__", ()) or (annotation,):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            yield candidate


def _explain(kind: type[Config], error: ValidationError) -> str:
    explained: dict[str, str] = {}  # of each key the first fault: a field of several types has one for each type
    for fault in error.errors():
        path = ".".join(_keys(kind, fault["loc"], unknown=fault["type"] == "extra_forbidden"))
        explained.setdefault(path, _explain_one(kind, path, fault))
    return "; ".join(explained.values())


def _keys(kind: type[Config] | None, location: Sequence[str | int], *, unknown: bool) -> Iterator[str]:
    """The keys of a fault's place, without the names of types that pydantic puts between them."""
    for place, key in enumerate(location):
        if isinstance(key, int) or (unknown and place == len(location) - 1):
            yield str(key)
        elif kind and key in kind.model_fields:
            yield key
            kind = next(_nested_configs(kind, key), None)


def _explain_one(kind: type[Config], path: str, fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        *parents, last = path.split(".")
        for key in parents:
            kind = _field_config(kind, key)
        return f"unknown key {path!r}; {nearest(last, kind.model_fields)}"
    if fault["type"] == "missing":
        return f"key {path!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "model_type":
        return f"{path}: expected keys of its own; got {fault['input']!r}"
    if fault["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message[:1].lower()}{message[1:]}; got {fault['input']!r}"


def _load_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "text that cannot be read"
        raise InputError(f"Expected valid YAML in {origin}; got a fault{where}: {problem}.") from None
