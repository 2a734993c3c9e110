import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from biflow.checkpoint import load_model, save_model
from biflow.errors import InputError
from tests.builders import tiny_config, tiny_model


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

    monkeypatch.setattr("biflow.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
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
