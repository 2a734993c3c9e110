"""What training and sampling take: floating-point operations for one image, and bytes that an image holds."""

from typing import NamedTuple

from biflow.config import AlignConfig, FitConfig, ModelConfig, RunConfig
from biflow.data.augment import GUIDED_SHARE
from biflow.features.classifier import Classifier
from biflow.models.alignment_paths import by_block
from biflow.plan.parts import (
    FULL,
    NOTHING,
    Cost,
    affine,
    flow,
    flow_block,
    flow_layers,
    head,
    layer,
    linear,
    reverse_block,
    reverse_blocks,
    reverse_config,
    reverse_levels,
    reverse_pass,
)

USUAL_FEATURES = 768  # the width of a base-size vision transformer, where an encoder's is not known before it is loaded


class Step(NamedTuple):
    """A training step, for one image."""

    trained: Cost  # with a gradient
    forward: Cost  # without one
    held: float  # bytes beside those that the backward pass reads: the batch, the flow's states, hidden states
    left_out: tuple[str, ...]  # networks that are not counted

    @property
    def operations(self) -> float:
        """Operations of the forward and the backward pass."""
        return self.trained.trained + self.forward.forward


def bytes_of_a_value(fit: FitConfig) -> int:
    """Of the networks' values in training."""
    return 2 if fit.precision == "bfloat16" else FULL


def stage_fits(config: RunConfig) -> dict[str, FitConfig]:
    """How each stage of a run is trained; without that of the small classifier that some distances need."""
    names = ("flow", "reverse") if config.stage == "both" else (config.stage,)
    fits = {name: config.fit_reverse if name == "reverse" else config.fit_flow for name in names}
    return {name: fit for name, fit in fits.items() if fit is not None}


def training_step(config: RunConfig, stage: str) -> Step:
    """A step of the stage "flow", "reverse" or "joint"."""
    model = config.model
    value = bytes_of_a_value(stage_fits(config)[stage])
    values = model.num_patches * model.patch_dim
    held = 2 * FULL * values  # the images with and without noise
    codec = () if model.codec == "pixels" else ("codec",)
    if stage == "reverse":
        states = FULL * (model.flow.blocks + 1) * values
        back = _learned_inverse(config, value, label_drop=stage_fits(config)[stage].label_drop)
        return Step(back.trained, back.forward + flow(model), held + states + back.held, codec + back.left_out)
    forward = _maximum_likelihood(config, value)
    step = Step(forward.trained, forward.forward, held + FULL * values, codec + forward.left_out)
    if stage == "flow":
        return step
    back = _learned_inverse(config, value, label_drop=config.fit_flow.label_drop)
    return Step(
        step.trained + back.trained, step.forward + back.forward, step.held + back.held, step.left_out + back.left_out
    )


def _maximum_likelihood(config: RunConfig, value: int) -> Step:
    model, align = config.model, config.fit_flow.align
    trained = flow(model, value=value, given=True)
    if align is None:
        return Step(trained, NOTHING, 0.0, ())
    features, unread = _features(model, align, value)
    known = align.encoder == "classifier"
    seen = _classifier_maps(model) if known else NOTHING
    left_out = () if known else ("encoder",)
    return Step(trained + features + _projections(model, align, value), unread + seen, 0.0, left_out)


def _features(model: ModelConfig, align: AlignConfig, value: int) -> tuple[Cost, Cost]:
    """What the ways of `models/feature_ways.py` evaluate beside the flow's pass, with and without a gradient."""
    layers = {block: max(asked) for block, asked in by_block(align.layers).items()}
    trained, unread, length = NOTHING, NOTHING, model.num_patches
    if align.strategy == "forward":
        return trained, unread
    embedding = length * linear(model.patch_dim, model.flow.width)
    for block in range(model.flow.blocks, min(layers) - 1, -1):
        depth = layers.get(block, 0)
        if align.strategy == "reverse":
            trained += flow_block(model, block - 1, value=value, given=True)
            trained += (align.sweeps - 1) * flow_block(model, block - 1, value=value)
        elif align.strategy == "reverse_sequential":
            for prefix in range(1, length):
                trained += flow_block(model, block - 1, value=value, tokens=prefix)
        elif align.strategy == "reverse_literal":
            later = model.flow.block_layers[block - 1] - depth
            unread += later * layer(model.flow, length) + affine(model)
        given = align.strategy in {"detach", "reverse_literal"}
        if depth:
            trained += flow_layers(model, depth, value=value, given=given)
        elif align.strategy != "detach":  # the input is embedded, and read by nothing
            unread += embedding
    return trained, unread


def _projections(model: ModelConfig, align: AlignConfig, value: int) -> Cost:
    """The projector on the features of every place, and the distance from the encoder's."""
    width, hidden = model.flow.width, align.hidden_width or model.flow.width
    features = feature_width(align)
    one = linear(width, hidden, kept=value * width) + linear(hidden, hidden, kept=2 * value * hidden)
    one += linear(hidden, features, kept=2 * value * hidden + 2 * FULL * features)
    return len(align.layers) * model.num_patches * one


def feature_width(align: AlignConfig) -> int:
    """The width of the encoder's features, a usual one where it is not known."""
    return 2 * Classifier.WIDTH if align.encoder == "classifier" else USUAL_FEATURES


def _classifier_maps(model: ModelConfig) -> Cost:
    """Both stages of convolutions of the small classifier, the second at half the resolution."""
    width, fine, coarse = Classifier.WIDTH, model.image_size**2, ((model.image_size + 1) // 2) ** 2
    weights = fine * (model.channels * width + width**2) + coarse * (2 * width**2 + 4 * width**2)
    return Cost(linear=2 * 9 * weights)


def _learned_inverse(config: RunConfig, value: int, *, label_drop: float) -> Step:
    """The reverse model's own part of a step."""
    model, reverse = config.model, reverse_config(config.model)
    length, hidden = model.num_patches, FULL * reverse.width
    trained = reverse_pass(model, value) + reverse_levels(model) * head(model, value)
    forward, trained_in = NOTHING, reverse.guidance == "trained"
    guided = reverse_blocks(model) if trained_in else 0
    if trained_in:
        share = GUIDED_SHARE * (1 - label_drop) if model.num_classes else 0.0
        forward += (share * guided) * reverse_block(model)
        embedding = linear(32, reverse.width, given=True) + linear(reverse.width, reverse.width)
        trained += embedding
    plain = reverse_blocks(model) - guided
    held = hidden * (guided * length + plain * (length + reverse.class_tokens))  # what the blocks give
    kinds = {each.kind for each in config.fit_reverse.distances} if config.fit_reverse else set()
    return Step(trained, forward, held, tuple(sorted(f"network of {kind}" for kind in kinds - {"mse", "l1"})))


def sampling(model: ModelConfig) -> dict[str, float]:
    """Operations for one image by way of sampling; of the iterations those of one sweep through all blocks."""
    found: dict[str, float] = {}
    score = flow(model).differentiated
    if model.reverse is not None:
        after = score if model.reverse.denoising == "score" else 0.0
        once = reverse_pass(model).forward + after
        again = 0.0 if model.reverse.guidance == "trained" else reverse_blocks(model) * reverse_block(model).forward
        found |= {"one pass": once, "one pass, guided": once + again}
    inverse, sweep = _patch_by_patch(model).forward, flow(model, tokens=model.num_patches - 1).forward
    return found | {
        "exact inverse": inverse,
        "exact inverse, guided": 2 * inverse,
        "Jacobi, a sweep": sweep,
        "Jacobi, a sweep, guided": 2 * sweep,
        "score step after either": score,
    }


def _patch_by_patch(model: ModelConfig) -> Cost:
    """The exact inverse with caches: every patch but the last is read once by every block, and sees those before it."""
    calls = model.num_patches - 1
    cost = NOTHING
    for depth in model.flow.block_layers:
        ends = flow_layers(model, 0, tokens=calls) + affine(model, tokens=calls)
        cost += ends + depth * layer(model.flow, calls, seen=(calls + 1) / 2)
    return cost
