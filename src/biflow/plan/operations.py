"""FLOPs per image of training and sampling, and activation memory per image."""

from typing import NamedTuple

from biflow.config import AlignConfig, FitConfig, ModelConfig, RunConfig
from biflow.config.training import WITHOUT_NETWORK
from biflow.data.augment import GUIDED_SHARE
from biflow.features.classifier import Classifier
from biflow.models.alignment_paths import by_block
from biflow.plan import parts
from biflow.plan.parts import FULL, NOTHING, Cost

DEFAULT_FEATURES = 768  # width of a base-size vision transformer, assumed before an encoder is loaded
FROZEN_FLOW = {"reverse", "finish"}  # stages that train the reverse model alone


class Step(NamedTuple):
    """Cost of a training step per image."""

    trained: Cost  # with gradients
    forward: Cost  # without gradients
    buffers: float  # bytes besides the saved tensors: the batch, the flow's states, hidden states
    left_out: tuple[str, ...]  # networks not counted

    @property
    def operations(self) -> float:
        """FLOPs of the forward and backward pass."""
        return self.trained.trained + self.forward.forward


def bytes_per_value(fit: FitConfig) -> int:
    """Bytes per activation value in training."""
    return 2 if fit.precision == "bfloat16" else FULL


def stage_fits(config: RunConfig) -> dict[str, FitConfig]:
    """Training settings of each stage of a run, without the small classifier that some distances need."""
    names = ("flow", "reverse") if config.stage == "both" else (config.stage,)
    fits: dict[str, FitConfig | None]
    fits = {name: config.fit_reverse if name == "reverse" else config.fit_flow for name in names}
    fits["finish"] = config.fit_finish
    return {name: fit for name, fit in fits.items() if fit is not None}


def training_step(config: RunConfig, stage: str) -> Step:
    """Cost of a training step of the stage "flow", "reverse", "joint" or "finish"."""
    model, fit = config.model, stage_fits(config)[stage]
    value, values = bytes_per_value(fit), model.num_patches * model.patch_dim
    first = Step(NOTHING, parts.flow(model), FULL * (model.flow.blocks + 1) * values, ())  # the frozen flow's states
    if stage not in FROZEN_FLOW:
        first = _flow_step(config, value)
    second = _reverse_step(config, value, fit.label_drop) if stage != "flow" else Step(NOTHING, NOTHING, 0.0, ())
    if stage == "finish" and config.fit_finish:  # and samples from the prior
        networks = dict.fromkeys((*second.left_out, f"network of {config.fit_finish.features.kind}"))
        trained = second.trained + parts.reverse_pass(model, value)
        second = Step(trained, second.forward, second.buffers, tuple(networks))
    return Step(
        first.trained + second.trained,
        first.forward + second.forward,
        2 * FULL * values + first.buffers + second.buffers,  # clean and noisy images
        ("codec",) * (model.codec != "pixels") + first.left_out + second.left_out,
    )


def _flow_step(config: RunConfig, value: int) -> Step:
    """Maximum likelihood, with alignment if the config asks for it."""
    model, align = config.model, config.fit_flow.align
    trained, forward, left_out = parts.flow(model, value=value, no_grad_input=True), NOTHING, tuple[str, ...]()
    if align is not None:
        features, forward = _features(model, align, value)
        trained += features + _projections(model, align, value)
        if align.encoder == "classifier":
            forward += _classifier_maps(model)
        else:
            left_out = ("encoder",)
    return Step(trained, forward, FULL * model.num_patches * model.patch_dim, left_out)


def _features(model: ModelConfig, align: AlignConfig, value: int) -> tuple[Cost, Cost]:
    """Cost of `models/alignment_paths.py` on top of the flow's pass, with and without gradients."""
    depths = {block: max(layers) for block, layers in by_block(align.layers).items()}
    trained, without_grad, length = NOTHING, NOTHING, model.num_patches
    if align.strategy == "forward":
        return trained, without_grad
    embedding = length * parts.linear(model.patch_dim, model.flow.width)
    for block in range(model.flow.blocks, min(depths) - 1, -1):
        depth = depths.get(block, 0)
        if align.strategy == "reverse":
            trained += parts.flow_block(model, block - 1, value=value, no_grad_input=True)
            trained += (align.sweeps - 1) * parts.flow_block(model, block - 1, value=value)
        elif align.strategy == "reverse_sequential":
            for prefix in range(1, length):
                trained += parts.flow_block(model, block - 1, value=value, tokens=prefix)
        elif align.strategy == "reverse_literal":
            later = model.flow.block_layers[block - 1] - depth
            without_grad += later * parts.layer(model.flow, length) + parts.affine(model)
        if depth:
            detached = align.strategy in {"detach", "reverse_literal"}
            trained += parts.flow_layers(model, depth, value=value, no_grad_input=detached)
        elif align.strategy != "detach":  # the input is embedded but not used
            without_grad += embedding
    return trained, without_grad


def _projections(model: ModelConfig, align: AlignConfig, value: int) -> Cost:
    """The projector on the features of every aligned layer, and the distance from the encoder's features."""
    width, hidden = model.flow.width, align.hidden_width or model.flow.width
    features = feature_width(align)
    one = parts.linear(width, hidden, saved=value * width) + parts.linear(hidden, hidden, saved=2 * value * hidden)
    one += parts.linear(hidden, features, saved=2 * value * hidden + 2 * FULL * features)
    return len(align.layers) * model.num_patches * one


def feature_width(align: AlignConfig) -> int:
    """The width of the encoder's features, or a default if unknown."""
    return 2 * Classifier.WIDTH if align.encoder == "classifier" else DEFAULT_FEATURES


def _classifier_maps(model: ModelConfig) -> Cost:
    """Both convolutional stages of the small classifier, the second at half resolution."""
    width, fine, coarse = Classifier.WIDTH, model.image_size**2, ((model.image_size + 1) // 2) ** 2
    weights = fine * (model.channels * width + width**2) + coarse * (2 * width**2 + 4 * width**2)
    return Cost(linear=2 * 9 * weights)


def _reverse_step(config: RunConfig, value: int, label_drop: float) -> Step:
    """The reverse model's part of a step."""
    model, reverse = config.model, parts.reverse_config(config.model)
    length, hidden = model.num_patches, FULL * reverse.width
    trained = parts.reverse_pass(model, value) + parts.reverse_levels(model) * parts.head(model, value)
    forward, guided = NOTHING, 0
    if reverse.guidance == "trained":
        guided = parts.reverse_blocks(model)
        share = GUIDED_SHARE * (1 - label_drop) if model.num_classes else 0.0
        forward += (share * guided) * parts.reverse_block(model)
        trained += parts.linear(32, reverse.width, no_grad_input=True) + parts.linear(reverse.width, reverse.width)
    unguided = parts.reverse_blocks(model) - guided
    buffers = hidden * (guided * length + unguided * (length + reverse.class_tokens))  # block outputs
    kinds = {each.kind for each in config.fit_reverse.distances} if config.fit_reverse else set()
    return Step(trained, forward, buffers, tuple(sorted(f"network of {kind}" for kind in kinds - WITHOUT_NETWORK)))


def sampling(model: ModelConfig) -> dict[str, float]:
    """FLOPs per image of each sampling method; for iterative methods, those of one sweep through all blocks."""
    flops: dict[str, float] = {}
    score = parts.flow(model).differentiated
    if model.reverse is not None:
        after = score if model.reverse.denoising == "score" else 0.0
        one_pass = parts.reverse_pass(model).forward + after
        again = 0 if model.reverse.guidance == "trained" else parts.reverse_blocks(model)
        guidance = again * parts.reverse_block(model).forward
        flops |= {"one pass": one_pass, "one pass, guided": one_pass + guidance}
    inverse, sweep = _patch_by_patch(model).forward, parts.flow(model, tokens=model.num_patches - 1).forward
    return flops | {
        "exact inverse": inverse,
        "exact inverse, guided": 2 * inverse,
        "Jacobi, one sweep": sweep,
        "Jacobi, one sweep, guided": 2 * sweep,
        "score step": score,
    }


def _patch_by_patch(model: ModelConfig) -> Cost:
    """The exact inverse with caches: every block reads each patch but the last once, attending to those before it."""
    calls = model.num_patches - 1
    cost = NOTHING
    for depth in model.flow.block_layers:
        ends = parts.flow_layers(model, 0, tokens=calls) + parts.affine(model, tokens=calls)
        cost += ends + depth * parts.layer(model.flow, calls, attended=(calls + 1) / 2)
    return cost
