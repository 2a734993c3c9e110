import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from biflow.checkpoint import load_model, load_training, save_model
from biflow.errors import InputError
from biflow.inputs import MOST_BYTES
from biflow.tensors import hash_tensors, write_safetensors
from tests.builders import tiny_config, tiny_model, with_names


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_the_same(folder):
    saved, loaded = tiny_model(), load_model(folder)
    assert loaded.config == saved.config
    assert loaded.class_names == saved.class_names
    for ours, theirs in ((saved.flow, loaded.flow), (saved.reverse, loaded.reverse)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_a_flow_without_a_reverse_model_is_a_model_too(tmp_path):
    save_model(tiny_model(tiny_config(reverse=None)), tmp_path / "flow")
    assert load_model(tmp_path / "flow").reverse is None


def test_saving_again_replaces_the_model_and_keeps_the_users_files(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "samples").mkdir()
    (folder / "samples" / "grid.png").write_text("grid")
    model = tiny_model(seed=1)
    save_model(model, folder)
    assert torch.equal(load_model(folder).flow.blocks[0].project_in.weight, model.flow.blocks[0].project_in.weight)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "samples" / "grid.png").read_text() == "grid"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model_and_nothing_else(folder, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("biflow.checkpoint.write_safetensors", full_disk)
    with pytest.raises(InputError, match="No space"):
        save_model(tiny_model(seed=1), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    load_model(folder)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist\. Train one"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"{name}; the file is damaged"):
        load_model(folder)


def test_a_newer_format_asks_for_an_update(folder):
    edit_config(folder, format_version=99)
    with pytest.raises(InputError, match=r"has 99\. Update biflow"):
        load_model(folder)


def test_saving_touches_nothing_but_a_model(folder, tmp_path):
    model = load_model(folder)
    save_model(model, folder)  # another model's place
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("kept")
    with pytest.raises(InputError, match=r"has other files\. Choose another output path"):
        save_model(model, tmp_path / "precious")
    assert [each.name for each in (tmp_path / "precious").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        save_model(model, tmp_path / "precious" / "thesis.txt" / "model")


def test_json_that_is_no_model_is_refused(folder):
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="not a biflow model folder"):
        load_model(folder)


def test_a_newer_format_is_named_even_if_it_looks_quite_different(folder):
    (folder / "config.json").write_text('{"format_version": 9}')
    with pytest.raises(InputError, match=r"has 9\. Update biflow"):
        load_model(folder)


def test_class_names_that_are_no_list_are_refused(folder):
    edit_config(folder, class_names=5)
    with pytest.raises(InputError, match="class_names"):
        load_model(folder)


def test_a_file_is_no_model_folder(folder):
    with pytest.raises(InputError, match="is not a folder"):
        load_model(folder / "config.json")


def test_loading_leaves_the_global_random_numbers_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_model(folder)
    assert torch.rand(1) == expected


def test_weights_that_do_not_fit_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["flow.stranger"] = tensors.pop("flow.blocks.0.project_in.bias")
    tensors["reverse.project_in.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "flow.blocks.0.project_in.bias is missing" in message
    assert "flow.stranger is not expected" in message
    assert "reverse.project_in.bias has shape (3,), not (16,)" in message


def halve(folder, dtype, **changes):
    """Round the stored weights, as is usual before sharing."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file(
        {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()},
        folder / "model.safetensors",
    )


@pytest.fixture
def fitted():
    """A model whose reverse model was fitted to its flow."""
    model = tiny_model()
    model.reverse.record_flow(model.flow)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_halved_in_the_file_are_loaded_and_saved_again(fitted, tmp_path, dtype):
    save_model(fitted, tmp_path / "model")
    halve(tmp_path / "model", dtype)
    loaded = load_model(tmp_path / "model")
    for name, tensor in fitted.flow.state_dict().items():
        assert torch.equal(loaded.flow.state_dict()[name], tensor.to(dtype).float()), name
    assert loaded.reverse.matches_flow(loaded.flow)
    save_model(loaded, tmp_path / "again")
    assert torch.equal(
        load_model(tmp_path / "again").flow.blocks[0].project_in.weight, loaded.flow.blocks[0].project_in.weight
    )


def test_halved_weights_of_another_flow_are_refused(fitted, tmp_path):
    save_model(fitted, tmp_path / "model")
    halve(tmp_path / "model", torch.bfloat16, **{"flow.prior_variance": torch.full((4, 4), 1.5)})
    with pytest.raises(InputError, match="they have changed since"):
        load_model(tmp_path / "model")


def test_float64_weights_are_loaded_by_value(folder):
    halve(folder, torch.float64)
    assert torch.equal(load_model(folder).flow.prior_variance, tiny_model().flow.prior_variance)


def test_halved_weights_that_were_widened_again_are_loaded(fitted, tmp_path):
    save_model(fitted, tmp_path / "model")
    halve(tmp_path / "model", torch.bfloat16)
    halve(tmp_path / "model", torch.float32)
    assert load_model(tmp_path / "model").reverse is not None


@pytest.mark.parametrize("digests", [{}, [], "x", 5, {"float32": None}, {"float32": ["a"]}])
def test_a_folder_whose_checksums_are_gone_is_refused(folder, digests):
    edit_config(folder, digests=digests)
    with pytest.raises(InputError, match="changed since"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["fitted", "unfitted", "flow alone"])
def test_a_flipped_bit_of_the_weights_is_never_accepted(fitted, tmp_path, kind):
    models = {"fitted": fitted, "unfitted": tiny_model(), "flow alone": tiny_model(tiny_config(reverse=None))}
    save_model(models[kind], tmp_path / "model")
    path, draw = tmp_path / "model" / "model.safetensors", random.Random(0)
    whole = path.read_bytes()
    for _ in range(15):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(InputError):
            load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [{"noise_std": 0.3}, {"dequantise": True}, {"flow": {"blocks": 3, "layers": 2, "width": 16, "head_width": 4}}],
)
def test_a_changed_setting_that_fits_the_weights_is_refused(folder, change):
    model = json.loads((folder / "config.json").read_text())["model"]
    edit_config(folder, model=model | change)
    with pytest.raises(InputError, match=r"changed since\. Copy .* set digests to null"):
        load_model(folder)
    edit_config(folder, digests=None)
    load_model(folder)


def test_swapped_class_names_are_refused_and_another_codec_is_not(folder):
    model = json.loads((folder / "config.json").read_text())["model"]
    edit_config(folder, model=model | {"codec": "vae:somewhere/else"})
    assert load_model(folder).config.codec == "vae:somewhere/else"
    edit_config(folder, class_names=["b", "a", "c"])
    with pytest.raises(InputError, match="changed since"):
        load_model(folder)


def test_reverse_models_of_earlier_formats_are_refused(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["digests"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="digests"):
        load_model(folder)
    edit_config(folder, format_version=4)
    with pytest.raises(InputError, match=r"Expected a reverse model of format 6; .* has 4. Train it again"):
        load_model(folder)


@pytest.mark.parametrize("version", [4, 5])
def test_flows_of_earlier_formats_are_loaded(tmp_path, version):
    model = tiny_model(tiny_config(reverse=None))
    save_model(model, tmp_path / "flow")
    content = json.loads((tmp_path / "flow" / "config.json").read_text())
    if version == 4:
        del content["digests"]
    (tmp_path / "flow" / "config.json").write_text(json.dumps(content | {"format_version": version}))
    z, labels = torch.randn(2, 4, 4), torch.tensor([0, 1])
    torch.testing.assert_close(load_model(tmp_path / "flow").flow(z, labels).z, model.flow(z, labels).z)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("flow", {"blocks": 10**6}), ("flow", {"layers": 10**9}), ("flow", {"width": 320_000}),
        ("flow", {"mlp_ratio": 1e300}), ("reverse", {"class_tokens": 10**7}), ("reverse", {"layers": 10**12}),
        ("reverse", {"positions": "rotary", "class_tokens": 10**9}), (None, {"image_size": 2**62}),
        (None, {"channels": 10**30}), (None, {"num_classes": 10**12}),
    ],
)  # fmt: skip
def test_no_network_is_built_that_the_file_could_not_fill(folder, part, change):
    model = json.loads((folder / "config.json").read_text())["model"]
    edit_config(folder, class_names=[], model=model | ({part: model[part] | change} if part else change))
    with pytest.raises(InputError, match=r"match its config\.json; it holds \d+ tensors"):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "1" * 5000, b"\xff\xfe",
        "[" * 40 + "]" * 40, '{"format_version": 5, "format_version": 4}',
    ],
)  # fmt: skip
def test_json_that_nobody_would_write_is_one_sentence(folder, content):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"config\.json; the file is damaged"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "training.json"])
def test_pipes_and_devices_are_not_read(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=rf"{name}.*is a device or a pipe"):
        load_training(folder) if name == "training.json" else load_model(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{name}.*is a device or a pipe"):
        load_training(folder) if name == "training.json" else load_model(folder)


def test_a_huge_file_is_not_read(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="more than 16 MiB"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * torch.nan, r"input|project_in\.bias has NaN"),
        (lambda x: x / 0, "NaN or Inf"),
        (lambda x: x.long(), "of type int64"),
        (lambda x: x > 0, "of type bool"),
        (lambda x: x.to(torch.complex64), "of type complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "of type float8"),
    ],
)
def test_weights_are_finite_floating_point_numbers(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    tensors["flow.blocks.0.project_in.bias"] = change(tensors["flow.blocks.0.project_in.bias"])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_as_many_names_as_classes_are_loaded_and_saved(folder, tmp_path):
    edit_config(folder, class_names=["a", "b"])
    with pytest.raises(InputError, match=r"Expected 3 class names .* got 2"):
        load_model(folder)
    with pytest.raises(InputError, match="Expected 3 class names to save; got 1"):
        save_model(with_names(tiny_model(), ("a",)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_class_names_cannot_steer_a_terminal(tmp_path):
    names = ("a\x1b[2J", "b\r\n", "c\u202e\ud800")
    save_model(with_names(tiny_model(), names), tmp_path / "model")
    loaded = load_model(tmp_path / "model").class_names
    assert loaded == ("a\\x1b[2J", "b\\r\\n", "c\\u202e\\ud800")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(content | {"class_names": names}))
    assert load_model(tmp_path / "model").class_names == loaded


def test_a_model_whose_flow_has_changed_since_is_not_saved(fitted, tmp_path):
    with torch.no_grad():
        fitted.flow.blocks[0].project_in.bias.add_(1)
    with pytest.raises(InputError, match="so that the folder could not be loaded"):
        save_model(fitted, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "content",
    [[1], {"stages": []}, {"stages": {"flow": 3}}, {"stages": {"flow": {"last": {"a": "b"}, "seconds": 1}}}, "x"],
)
def test_a_record_of_the_wrong_types_is_named(folder, content):
    (folder / "training.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"training\.json.*; got .*\. Remove it"):
        load_training(folder)


def test_a_fault_of_the_disk_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_safetensors({"a": torch.zeros(2)}, tmp_path / "nowhere" / "x.safetensors")


@pytest.mark.parametrize("value", ["9" * 5000, "\x1b[2J\n", [[1] * 99] * 99, {str(i): i for i in range(5000)}])
def test_a_setting_that_nobody_would_write_is_one_short_sentence(folder, value):
    model = json.loads((folder / "config.json").read_text())["model"]
    for changed in (model | {"codec": value}, model | {"flow": value}, model | {"noise_std": value}):
        edit_config(folder, model=changed)
        with pytest.raises(InputError) as caught:
            load_model(folder)
        assert len(str(caught.value)) < 2000
        assert str(caught.value).isprintable()


def test_a_replaced_models_record_of_training_goes_with_it(tmp_path):
    save_model(tiny_model(), tmp_path / "model", {"data": "digits"})
    assert load_training(tmp_path / "model") == {"data": "digits"}
    save_model(tiny_model(seed=1), tmp_path / "model")
    assert load_training(tmp_path / "model") is None


def test_a_loaded_model_is_frozen_and_in_eval_mode(folder):
    loaded = load_model(folder)
    for network in (loaded.flow, loaded.reverse):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_other_users_can_read_the_weights(folder):
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_hash_of_tensors_tells_names_and_shapes_apart_but_not_their_order():
    a, b = torch.arange(4.0), torch.ones(2)
    right = hash_tensors({"a": a, "b": b})
    assert hash_tensors({"b": b, "a": a}) == right
    others = [{"b": a, "a": b}, {"a": a.view(2, 2), "b": b}, {"a": a, "c": b}, {"a": a}, {"a": a, "b": -b}]
    assert len({right, hash_tensors({"a": a, "b": b}, "text"), *map(hash_tensors, others)}) == 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_networks_that_were_compiled_are_saved_under_their_own_names(fitted, tmp_path):
    whole = dict(fitted.networks.state_dict())
    fitted.flow.blocks[0] = torch.compile(fitted.flow.blocks[0])
    save_model(fitted, tmp_path / "model")
    again = load_model(tmp_path / "model").networks.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_what_could_not_be_loaded_is_not_saved_over_a_good_model(fitted, tmp_path):
    folder = tmp_path / "model"
    save_model(fitted, folder)
    broken, cut = load_model(folder), load_model(folder)
    broken.flow.blocks[0].project_in.bias.data[0] = torch.nan
    del cut.flow.blocks[0]
    for model, message in ((broken, r"project_in\.bias has NaN"), (cut, "Expected weights to save that match")):
        with pytest.raises(InputError, match=message):
            save_model(model, folder)
    load_model(folder)
