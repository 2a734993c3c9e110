"""ml-tarflow checkpoints, compared with golden outputs of an independent implementation and a float64 reference."""

import json
import math
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from biflow.data.randomness import normal_for
from biflow.errors import InputError
from biflow.hub.tarflow import load_tarflow
from biflow.models.flow_block import FlowBlock
from biflow.models.forward_flow import ForwardFlow
from biflow.models.patches import patchify, unpatchify
from biflow.pipeline import Pipeline
from biflow.sampling.guidance import Guidance
from biflow.sampling.jacobi import invert_by_jacobi
from biflow.sampling.sequential import invert_sequentially
from biflow.tensors import file_checksum, read_state_dict
from tests.builders import read_npz
from tests.reference_tarflow import ReferenceTARFlow

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ["tarflow_conditional", "tarflow_unconditional_rgb"]
ON = {"a": "log_scale", "b": "shift", "ab": "both"}


@dataclass
class Golden:
    """A checkpoint, the outputs of the independent implementation, and the loaded flow."""

    path: Path
    numbers: dict[str, np.ndarray]
    flow: ForwardFlow

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.numbers[name])

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads(str(self.numbers["meta"]))

    def patches(self, name: str) -> Tensor:
        return patchify(self[name], self.flow.config.patch_size)

    def labels(self, name: str | None = "y") -> Tensor:
        """Labels as biflow counts them, with the null label last."""
        null = self.flow.config.null_label
        if name not in self.numbers:
            return torch.full((len(self["x"]),), null)
        return torch.where(self[name] < 0, null, self[name])

    def their_labels(self, name: str = "y") -> Tensor | None:
        return self[name] if name in self.numbers else None


def load(name: str) -> Golden:
    path = GOLDEN / f"{name}.pth"
    flow = load_tarflow(path, noise_std=0.1, image_size=8).flow
    return Golden(path, read_npz(GOLDEN / f"{name}.npz"), flow)


@pytest.fixture(params=FILES)
def golden(request) -> Golden:
    return load(request.param)


def every_guidance(golden: Golden) -> dict[str, Guidance]:
    return {
        name: Guidance(
            options.get("guidance", 0.0),
            annealed=options.get("annealed_guidance", False),
            on=ON[options.get("guide_what", "ab")],
            temperature=options.get("attn_temp", 1.0),
        )
        for name, options in golden.meta["guidance"].items()
    }


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_config_is_inferred_from_the_tensors(golden):
    config, meta = golden.flow.config, golden.meta
    assert (config.image_size, config.channels, config.patch_size) == (8, meta["channels_in"], meta["patch_size"])
    assert config.num_classes == meta["num_classes"]
    assert (config.flow.width, config.flow.blocks) == (meta["channels"], meta["blocks"])
    assert config.flow.layers == meta["layers_per_block"]


def test_states_log_det_and_loss_equal_the_golden_ones(golden):
    x = golden.patches("x")
    out = golden.flow(x, golden.labels())
    for i, state in enumerate(out.states[1:]):
        close(state, golden[f"block{i}"])
    close(out.z, golden["z"])
    close(out.log_det / x[0].numel(), golden["logdet"])
    log_prob = golden.flow.log_prob(x, golden.labels()) / x[0].numel()
    close(-log_prob.mean() - 0.5 * math.log(2 * math.pi), golden["loss"])


def test_log_prob_equals_the_golden_one_up_to_its_constant(golden):
    x = golden.patches("x")
    constant = 0.5 * math.log(2 * math.pi) * x[0].numel()
    close(golden.flow.log_prob(x, golden.labels()) + constant, golden["logp_unnormalised"])


@pytest.mark.parametrize(("labels", "suffix"), [("y_drop", "_drop"), (None, "_uncond")])
def test_dropped_and_missing_labels_equal_the_golden_ones(labels, suffix):
    golden = load("tarflow_conditional")
    out = golden.flow(golden.patches("x"), golden.labels(labels))
    close(out.z, golden[f"z{suffix}"])
    close(out.log_det / 64, golden[f"logdet{suffix}"])


def test_the_score_equals_the_golden_one(golden):
    x = golden.patches("x").requires_grad_()
    (score,) = torch.autograd.grad(golden.flow.log_prob(x, golden.labels()).sum(), x)
    close(score, golden.patches("score"))


@pytest.mark.parametrize("invert", [invert_sequentially, invert_by_jacobi])
def test_every_guided_inverse_equals_the_golden_one(golden, invert):
    options = {"tolerance": 1e-7} if invert is invert_by_jacobi else {}
    for name, guidance in every_guidance(golden).items():
        x = invert(golden.flow, golden["noise"], golden.labels(), guidance=guidance, **options).x
        image = unpatchify(x, golden.flow.config.patch_size, golden.flow.config.channels)
        close(image, golden[f"rev_{name}"])


def test_float64_agrees_with_the_reference(golden):
    flow, x = golden.flow.double(), golden.patches("x").double()
    reference = ReferenceTARFlow(torch.load(golden.path, weights_only=True), torch.float64)
    states, log_det = reference.forward(x, golden.their_labels())
    out = flow(x, golden.labels())
    torch.testing.assert_close(out.states[1:], states, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.log_det, log_det, rtol=0, atol=1e-9)
    for name, guidance in every_guidance(golden).items():
        options = golden.meta["guidance"][name]
        expected = reference.inverse(
            golden["noise"].double(),
            golden.their_labels(),
            guidance.strength,
            guidance.annealed,
            options.get("guide_what", "ab"),
            guidance.temperature,
        )
        found = invert_sequentially(flow, golden["noise"].double(), golden.labels(), guidance=guidance).x
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_learned_prior_variance_is_loaded(tmp_path):
    state = torch.load(GOLDEN / "tarflow_unconditional_rgb.pth", weights_only=True)
    state["var"] = torch.rand(4, 48) + 0.5
    for i in range(2):  # volume preserving: the shift alone
        for part in ("weight", "bias"):
            state[f"blocks.{i}.proj_out.{part}"] = state[f"blocks.{i}.proj_out.{part}"].chunk(2)[1]
    torch.save(state, tmp_path / "vp.pth")
    pipe = Pipeline.from_tarflow(tmp_path / "vp.pth", noise_std=0.1)
    assert pipe.config.flow.volume_preserving
    close(pipe.model.flow.prior_variance, state["var"])
    unscaled = normal_for([0], (4, 48), "sample", 1)
    close(pipe.noise([0], seed=1), unscaled * state["var"].sqrt())


def test_an_imported_model_can_be_saved_loaded_and_sampled(tmp_path):
    pipe = Pipeline.from_tarflow(
        GOLDEN / "tarflow_conditional.pth", noise_std=0.1, image_size=8, class_names=list("abcde")
    )
    pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.class_names == tuple("abcde")
    options = {"method": "sequential", "guidance": Guidance(1.0, annealed=True)}
    assert torch.equal(loaded.sample_pixels([0, 4], **options), pipe.sample_pixels([0, 4], **options))


def changed(tmp_path: Path, change: dict[str, Tensor | None]) -> Path:
    """The conditional file with some tensors replaced or left out."""
    state = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True)
    state.update(change)
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.proj_in.bias": None}, "blocks.1.proj_in.bias is missing"),
        ({"blocks.0.proj_in.weight": None}, "blocks.0.proj_in.weight is missing"),
        ({"var": None}, "var is missing"),
        ({"decoder.weight": torch.zeros(2)}, "decoder.weight is not expected"),
        ({"blocks.4.proj_in.bias": torch.zeros(64)}, r"blocks.3.\* is missing, though there is blocks.4.\*"),
        ({"blocks.1.attn_blocks.9.mlp.norm.bias": torch.zeros(64)}, r"blocks.1.attn_blocks.2.\* is missing"),
        ({"var": torch.zeros(0, 4)}, "var with 2 dimensions"),
        ({"blocks.2.pos_embed": torch.zeros(15, 64)}, r"blocks.2.pos_embed has shape \(15, 64\), not \(16, 64\)"),
        ({"var": torch.zeros(15, 4)}, "not a square number"),
        ({"var": torch.zeros(16)}, "var with 2 dimensions"),
        ({"blocks.1.class_embed": None}, "blocks.1.class_embed is missing"),
    ],
)
def test_files_with_wrong_tensors_are_rejected_by_name(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        load_tarflow(changed(tmp_path, change), noise_std=0.1, image_size=8)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1), "b": Payload()}, "other objects, which are refused"),
        ({"a": torch.zeros(1), "b": 3}, "names and tensors"),
        ([torch.zeros(1)], "names and tensors"),
        ({}, "names and tensors"),
        ({"model.weight": torch.zeros(2, 2)}, r"blocks.0.\* is missing"),
    ],
)
def test_files_with_other_objects_than_tensors_are_rejected(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        load_tarflow(tmp_path / "file.pth", noise_std=0.1)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * torch.nan, "var has NaN or Inf"),
        (lambda x: x.double() * 1e200, "var has NaN or Inf"),
        (lambda x: x.int(), "var is of type int32"),
        (lambda x: x > 0, "var is of type bool"),
        (lambda x: x.to(torch.complex64), "var is of type complex64"),
        (lambda x: x.to("meta"), "var is a shape without values"),
        (lambda x: x.to_sparse(), "var is sparse"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "var is of type qint8|cannot read"),
        (lambda _: torch.ones(1, 1).expand(10**9, 64), "some repeat or share theirs"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_only_dense_finite_weights_are_imported(tmp_path, change, message):
    state = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True)
    with pytest.raises(InputError, match=message) as caught:
        load_tarflow(changed(tmp_path, {"var": change(state["var"])}), noise_std=0.1, image_size=8)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_of_an_archive_changes_no_weight(tmp_path):
    whole, draw = (GOLDEN / "tarflow_conditional.pth").read_bytes(), random.Random(0)
    right, refused = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True), 0
    for _ in range(60):
        data = bytearray(whole)
        data[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (tmp_path / "file.pth").write_bytes(data)
        try:
            found = read_state_dict(tmp_path / "file.pth", "a file")
        except InputError:
            refused += 1
            continue
        assert all(torch.equal(found[name], tensor) for name, tensor in right.items())
    assert refused > 40


def test_an_older_file_is_verified_by_the_hash_in_its_name(tmp_path):
    state = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    named = tmp_path / f"net-{file_checksum(tmp_path / 'old.pth')[:8]}.pth"
    (tmp_path / "old.pth").rename(named)
    assert read_state_dict(named, "a file").keys() == state.keys()
    data = bytearray(named.read_bytes())
    data[-5] ^= 1
    named.write_bytes(data)
    with pytest.raises(InputError, match=r"the checksums of .* differ"):
        read_state_dict(named, "a file")


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    with pytest.raises(InputError, match="Expected an intact file"):
        read_state_dict(tmp_path / "bomb.pth", "a file")


@pytest.mark.parametrize("wrap", ["module.module.{}", "_orig_mod.{}", "module._orig_mod.{}", "blocks.0._orig_mod.{}"])
def test_names_of_wrapped_models_are_those_of_the_model(tmp_path, wrap):
    """Of DistributedDataParallel, torch.compile, and AveragedModel with its counter."""
    state = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True)
    if wrap.startswith("blocks"):  # the first block alone is compiled
        wrapped = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in state.items()}
    else:
        wrapped = {wrap.format(name): tensor for name, tensor in state.items()} | {"n_averaged": torch.tensor(7)}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    model = load_tarflow(tmp_path / "wrapped.pth", noise_std=0.1, image_size=8)
    plain = load_tarflow(GOLDEN / "tarflow_conditional.pth", noise_std=0.1, image_size=8)
    for name, tensor in plain.flow.state_dict().items():
        assert torch.equal(model.flow.state_dict()[name], tensor)


def test_a_model_that_stands_in_a_file_twice_is_refused(tmp_path):
    torch.save({"var": torch.ones(1), "module.var": torch.ones(1)}, tmp_path / "twice.pth")
    with pytest.raises(InputError, match="some are repeated"):
        read_state_dict(tmp_path / "twice.pth", "a file")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_loaded_by_value(tmp_path, dtype):
    state = torch.load(GOLDEN / "tarflow_conditional.pth", weights_only=True)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "other.pth")
    flow = load_tarflow(tmp_path / "other.pth", noise_std=0.1, image_size=8).flow
    assert flow.prior_variance.dtype == torch.float32
    stored = state["blocks.0.proj_in.weight"].to(dtype).float()
    assert torch.equal(flow.blocks[0].project_in.weight, stored)


@pytest.mark.parametrize("name", ["blocks.99999999999.x", f"blocks.{'9' * 5000}.x", "blocks.٣.x", "x\x1b[2J\n"])
def test_names_of_no_model_are_one_sentence(tmp_path, name):
    path = changed(tmp_path, {name: torch.zeros(1)})
    with pytest.raises(InputError) as caught:
        load_tarflow(path, noise_std=0.1, image_size=8)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_damaged_and_missing_files_are_rejected(tmp_path):
    (tmp_path / "short.pth").write_bytes((GOLDEN / "tarflow_conditional.pth").read_bytes()[:1000])
    (tmp_path / "text.pth").write_text("hello")
    for name in ("short.pth", "text.pth", "none.pth"):
        with pytest.raises(InputError, match="cannot read"):
            load_tarflow(tmp_path / name, noise_std=0.1)


def test_ambiguous_files_need_more_arguments():
    path = GOLDEN / "tarflow_conditional.pth"
    with pytest.raises(InputError, match=r"8 \(1 channel, patches of 2x2\) or 4 \(4 channels, patches of 1x1\).*none"):
        load_tarflow(path, noise_std=0.1)
    assert load_tarflow(path, noise_std=0.1, image_size=4).config.channels == 4
    pytest.importorskip("diffusers")
    with pytest.raises(InputError, match="autoencoder 'unknown' of the codec"):
        Pipeline.from_tarflow(path, noise_std=0.1, image_size=4)
    with pytest.raises(InputError, match="the checkpoint: noise_std: expected"):
        load_tarflow(path, noise_std=math.nan, image_size=8)
    assert load_tarflow(path, noise_std=0, image_size=8).config.dequantise
    with pytest.raises(InputError, match="got 9"):
        load_tarflow(path, noise_std=0.1, image_size=9)
    with pytest.raises(InputError, match="5 class names"):
        load_tarflow(path, noise_std=0.1, image_size=8, class_names=["a"])
    assert load_tarflow(GOLDEN / "tarflow_unconditional_rgb.pth", noise_std=0.1).config.image_size == 8


def test_the_golden_comparison_detects_a_changed_weight(golden):
    """A small change of one weight is detected."""
    block = golden.flow.blocks[0]
    assert isinstance(block, FlowBlock)
    with torch.no_grad():
        block.project_out.bias[0] += 1e-3
    assert (golden.flow(golden.patches("x"), golden.labels()).z - golden["z"]).abs().max() > 1e-4
