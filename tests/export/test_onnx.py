"""One file that runs anywhere gives the images of the model it was made of."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from biflow.checkpoint import save_model
from biflow.config import FlowConfig, ReverseConfig
from biflow.data.randomness import normal_for
from biflow.errors import InputError
from biflow.export import onnx as export
from biflow.models.model import Model
from biflow.pipeline import Pipeline
from tests.builders import NUM_CLASSES, tiny_config, tiny_model

SMALL = {"layers": 1, "width": 16, "head_width": 8}
KINDS = {
    "as usual": {},
    "two passes of guidance": {"reverse": ReverseConfig(**SMALL, guidance="two_passes")},
    "distilled": {"reverse": ReverseConfig(**SMALL, strategy="distillation")},
    "rotary positions": {"reverse": ReverseConfig(**SMALL, positions="rotary", norm="rms", mlp="swiglu", qk_norm=True)},
    "a prior of its own": {"flow": FlowConfig(blocks=2, layers=1, width=16, head_width=8, volume_preserving=True)},
    "no classes": {"num_classes": 0},
}


def model_of(folder, **changes):
    """A folder of a tiny model, with a prior that is not the standard normal where it can be."""
    model = tiny_model(tiny_config(**changes))
    if model.config.flow.volume_preserving:
        model.flow.prior_variance.copy_(torch.linspace(0.3, 2.0, 16).view(4, 4))
    save_model(Model(model.config, tuple("abc"[: model.config.num_classes]), model.flow, model.reverse), folder)
    return folder


def inputs(batch, classes=NUM_CLASSES):
    """Noise, labels that include the null label, and a strength of guidance for each image."""
    return normal_for(range(batch), (4, 4), "test", batch), torch.arange(batch) % (classes + 1), torch.rand(batch) * 2


def one_by_one(folder, noise, labels, strengths):
    """The pipeline's images, each drawn alone."""
    pipe = Pipeline.from_pretrained(folder)
    rows = zip(noise.split(1), labels.split(1), strengths.tolist(), strict=True)
    return torch.cat([export.expected(pipe, *row, images=True) for row in rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def onnx_file(folder):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = folder.parent / "x.onnx"
    export.export_model(folder, path)
    return path


@pytest.fixture(scope="module")
def torch_file(folder):
    path = folder.parent / "new" / "x.pt2"
    export.export_model(folder, path, target="torch")
    return path


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_plain_noise_and_a_strength_for_each_image_give_the_pipelines_images(tmp_path, changes):
    folder = model_of(tmp_path / "model", **changes)
    sampler = export.make_sampler(Pipeline.from_pretrained(folder))
    given = inputs(5, sampler.config.num_classes)
    if not sampler.config.num_classes:
        given = (*given[:2], torch.zeros(5))
    with torch.no_grad():
        found = sampler(*given)
    assert found.shape == (5, 1, 4, 4)
    assert found.abs().max() <= 1
    torch.testing.assert_close(found, one_by_one(folder, *given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_an_onnx_file_gives_the_pipelines_images_at_any_batch_size(folder, onnx_file, batch):
    given = inputs(batch)
    found = export.read_onnx(onnx_file)(*given)
    torch.testing.assert_close(found, one_by_one(folder, *given), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_torch_program_gives_the_pipelines_images_at_any_batch_size(folder, torch_file, batch):
    given = inputs(batch)
    found = export.read_torch(torch_file)(*given)
    torch.testing.assert_close(found, one_by_one(folder, *given), atol=1e-4, rtol=0)


def out_of_range(run, null_label):
    """Labels of no class and strengths that nobody means give what the nearest usable ones do."""
    noise, _, _ = inputs(6)
    given = (
        torch.tensor([-1, -2, -11, null_label + 1, 2**40, 0]),
        torch.tensor([-1, torch.nan, -torch.inf, 0.5, 0.0, 1e9]),
    )
    meant = torch.tensor([null_label] * 5 + [0]), torch.tensor([0, 0, 0, 0.5, 0, 100.0])
    found = run(noise, *given)
    assert found.isfinite().all()
    torch.testing.assert_close(found, run(noise, *meant), atol=0, rtol=0)


def test_an_onnx_file_gives_every_input_a_defined_meaning(onnx_file):
    out_of_range(export.read_onnx(onnx_file), NUM_CLASSES)


def test_a_torch_program_gives_every_input_a_defined_meaning(torch_file):
    out_of_range(export.read_torch(torch_file), NUM_CLASSES)


@pytest.mark.parametrize("guidance", ["trained", "two_passes"])
def test_guidance_below_zero_is_none(tmp_path, guidance):
    """Trained guidance scales by w / (1 + w), which has a pole at -1."""
    folder = model_of(tmp_path / "model", reverse=ReverseConfig(**SMALL, guidance=guidance))
    with torch.no_grad():
        out_of_range(export.make_sampler(Pipeline.from_pretrained(folder)), NUM_CLASSES)


def test_the_files_say_what_they_are(onnx_file, torch_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["biflow"])
    assert [(each.name, each.type) for each in session.get_inputs()] == [
        ("noise", "tensor(float)"), ("label", "tensor(int64)"), ("guidance", "tensor(float)")
    ]  # fmt: skip
    assert (card["class_names"], card["null_label"], card["max_guidance"]) == (["a", "b", "c"], 3, None)
    assert (card["noise_shape"], card["image_size"], card["channels"]) == ([4, 4], 4, 1)
    assert len(card["weights_sha256"]) == 64
    extra = {"biflow.json": ""}
    with torch_file.open("rb") as file:
        torch.export.load(file, extra_files=extra)
    assert json.loads(extra["biflow.json"]) == card


def test_the_python_of_the_documents_runs_a_file(onnx_file, tmp_path, monkeypatch):
    """It is written for the ten digits; this model has three classes."""
    page = Path(__file__).parents[2] / "docs" / "export.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert "np.arange(10)" in block
    (tmp_path / "digits.onnx").write_bytes(onnx_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace("np.arange(10)", "np.arange(10) % 3"), names)
    found = export.read_onnx(onnx_file)(torch.from_numpy(names["noise"]), torch.arange(10) % 3, torch.full((10,), 0.25))
    assert names["images"].shape == (10, 1, 4, 4)
    assert torch.equal(torch.from_numpy(names["images"]), found)


def test_a_file_does_not_say_where_it_was_made(onnx_file):
    assert b".py" not in onnx_file.read_bytes()
    assert not onnx_file.with_name("x.onnx.data").exists()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_less_precision_is_of_such_weights_and_within_its_tolerance(
    biflow, folder, onnx_file, tmp_path, monkeypatch, precision
):
    """The graph takes seconds to write; it is taken from the file in float32."""
    import onnx

    graph = onnx.load(onnx_file)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=graph))
    out = tmp_path / "less.onnx"
    code, said, _ = biflow("export", folder, "--out", out, "--precision", precision)
    assert code == 0
    assert f"{precision}, noise of 4 x 4, output image" in said
    assert f"{127.5 * export.TOLERANCES[precision]:.2g}" in said  # the difference allowed, in grey levels
    weights = dict.fromkeys(onnx.TensorProto.DataType.values(), 0)
    for each in onnx.load(out).graph.initializer:
        weights[each.data_type] += math.prod(each.dims)
    less = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert weights[less] > weights[onnx.TensorProto.FLOAT]
    check = export.verify(
        export.read_onnx(out), Pipeline.from_pretrained(folder), images=True, tolerance=export.TOLERANCES[precision]
    )
    assert export.TOLERANCES["float32"] < check.largest <= check.tolerance


@pytest.fixture(scope="module")
def six():
    """A pipeline of six classes, and the sampler that is exported of it."""
    pipe = Pipeline(tiny_model(tiny_config(num_classes=6)))
    return pipe, export.make_sampler(pipe)


@pytest.mark.parametrize("wrong", range(7))
def test_a_file_that_is_wrong_for_one_class_alone_is_found(six, wrong):
    pipe, sampler = six

    @torch.no_grad()
    def run(noise, labels, guidance):
        return sampler(noise, torch.where(labels == wrong, (wrong + 1) % 7, labels), guidance)

    found = export.verify(run, pipe, images=True, tolerance=export.TOLERANCES["float32"])
    assert found.largest > found.tolerance


def test_a_file_that_differs_too_much_is_refused_and_nothing_is_left(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCES", {"float32": 0.0})
    with pytest.raises(InputError, match=r"the largest difference is .* grey levels"):
        export.export_model(folder, tmp_path / "x.pt2", target="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_one_onnx_file_is_sent_to_the_other_target(folder, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="Use --to torch"):
        export.export_model(folder, tmp_path / "x.onnx")


def test_latents_leave_as_they_are_or_as_images(biflow, autoencoder, tmp_path):
    folder = model_of(tmp_path / "model", codec=f"vae:{autoencoder}", channels=4)
    pipe, given = Pipeline.from_pretrained(folder), (torch.zeros(2, 4, 16), torch.tensor([0, 1]), torch.zeros(2))
    with torch.no_grad():
        assert export.make_sampler(pipe)(*given).shape == (2, 4, 4, 4)
    path = tmp_path / "x.pt2"
    code, said, _ = biflow("export", folder, "--out", path, "--to", "torch", "--codec")
    assert code == 0
    assert "output image" in said
    card = {"biflow.json": ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=card)
    card = json.loads(card["biflow.json"])
    assert (card["output"], card["image_size"], card["channels"], card["max_batch"]) == ("image", 8, 3, 63)
    assert export.read_torch(path)(*given).shape == (2, 3, 8, 8)


BAD = {
    "unknown target": ("x.onnx", {"target": "onx"}, "did you mean onnx"),
    "unknown precision": ("x.onnx", {"precision": "float8"}, "did you mean float"),
    "another ending": ("x.pt", {}, r"ending in \.onnx"),
    "eight bits for torch": ("x.pt2", {"target": "torch", "precision": "int8"}, "Use --to onnx"),
    "a file that is there": ("old.onnx", {}, "exists"),
}


@pytest.mark.parametrize(("out", "options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_anything_is_written(tmp_path, out, options, message):
    folder = model_of(tmp_path / "model")
    (tmp_path / "old.onnx").write_text("precious")
    with pytest.raises(InputError, match=message):
        export.export_model(folder, tmp_path / out, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "old.onnx"]
    assert (tmp_path / "old.onnx").read_text() == "precious"


UNFIT = {
    "a flow alone": ({"reverse": None}, "stage=reverse"),
    "a score step": ({"reverse": ReverseConfig(**SMALL, denoising="score")}, "denoising=learned"),
}


@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_a_model_that_has_no_pass_to_export_says_what_to_do(tmp_path, changes, message):
    folder = model_of(tmp_path / "model", **changes)
    with pytest.raises(InputError, match=message):
        export.export_model(folder, tmp_path / "x.pt2", target="torch")


def test_without_the_packages_the_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[onnx\]'"):
        export.export_model(folder, tmp_path / "x.onnx")
