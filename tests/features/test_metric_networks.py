"""Feature networks of every kind, as small checkpoints that are saved and loaded."""

import numpy as np
import pytest
import torch
from PIL import Image

from biflow.errors import InputError
from biflow.features.judge import Judge, load_judge, save_judge
from biflow.features.metric_networks import fit_positions, make_feature_net, resize_as_pillow
from tests.features.test_inception import random_weights

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file or folder of every kind of network, with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    torch.save(random_weights(), folder / "inception")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dinov2")
    for channels in (1, 3):
        save_judge(Judge(channels, 5), folder / f"judge{channels}")
    return folder


PLACES = {"inception": "inception", "dinov2": "dinov2", "efficientnet": "", "judge": "judge3", "grey judge": "judge1"}
KINDS = [kind for kind in PLACES if kind != "grey judge"]
WIDTHS = {
    "inception": (2048, 2023, 1008),
    "dinov2": (16, None, None),
    "efficientnet": (1280, None, None),
    "judge": (64, None, 5),
}


def net_of(kind, folder):
    place, name = PLACES[kind], kind.removeprefix("grey ")
    return make_feature_net(f"{name}:{folder / place}" if place else name)


def pixels(count: int = 2, channels: int = 3, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).byte()


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_of_every_image_alone_in_float32_and_frozen(kind, folder):
    net = net_of(kind, folder)
    net.train()
    assert net.name == kind
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    found = net(pixels())
    for each, width in zip(found, WIDTHS[kind], strict=True):
        assert (each is None) == (width is None)
        if each is not None:
            assert each.shape == (2, width)
            assert each.dtype == torch.float32
            assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(net(pixels()[1:]).pooled, found.pooled[1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_repeated_and_autocast_is_ignored(kind, folder):
    net = net_of(kind, folder)
    grey = pixels(1, channels=1)
    expected = net(grey.expand(-1, 3, -1, -1)).pooled
    torch.testing.assert_close(net(grey).pooled, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(grey).pooled
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_is_that_of_the_weights(kind, folder):
    net = net_of(kind, folder)
    assert net.identity() == net_of(kind, folder).identity()
    assert len(net.identity()) == 64
    assert net.preprocessing
    assert len({net_of(each, folder).identity() for each in PLACES}) == len(PLACES)


def test_dinov2_gives_the_class_token_after_the_last_norm(folder):
    transformers = pytest.importorskip("transformers")
    network = transformers.AutoModel.from_pretrained(folder / "dinov2").eval()
    positions = network.embeddings.position_embeddings
    network.embeddings.position_embeddings = torch.nn.Parameter(fit_positions(positions, 16))
    mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    images = (resize_as_pillow(pixels().float(), 224) / 255 - mean) / std
    with torch.no_grad():
        hidden = network(pixel_values=images, output_hidden_states=True).hidden_states[-1]
        expected = network.layernorm(hidden)[:, 0]
    torch.testing.assert_close(net_of("dinov2", folder)(pixels()).pooled, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_fitted_as_dinov2_fits_them():
    """By a factor that is a tenth of a patch too large, for a square of 37 patches as for any other."""
    positions = torch.randn(1, 1 + 37 * 37, 6, generator=torch.Generator().manual_seed(0))
    fitted = fit_positions(positions, 16)
    assert fitted.shape == (1, 257, 6)
    assert torch.equal(fitted[:, :1], positions[:, :1])
    assert torch.equal(fit_positions(positions, 37), positions)
    ramp = torch.arange(37.0).expand(37, 37).flatten()[None, :, None]
    patches = fit_positions(torch.cat([ramp[:, :1], ramp], dim=1), 16)[0, 1:, 0].view(16, 16)
    inside = (torch.arange(1, 15) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(patches[3, 1:15], inside, rtol=0, atol=0.06)  # cubics do not follow a ramp exactly
    assert patches[3, 14] < 14.5 * 37 / 16 - 0.5 - 0.12


@pytest.mark.parametrize("size", [28, 32, 64, 224, 300, 512])
def test_images_are_scaled_as_by_pillow(size):
    rough = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(rough).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    found = resize_as_pillow(torch.from_numpy(rough).permute(2, 0, 1)[None].float(), 224)[0].permute(1, 2, 0).numpy()
    assert (found == expected).mean() > 0.99
    assert abs(found - expected).max() <= 2


def test_a_saved_judge_loads(tmp_path):
    torch.manual_seed(0)
    judge = Judge(3, 5)
    save_judge(judge, tmp_path / "judge")
    before = torch.random.get_rng_state()
    found = load_judge(tmp_path / "judge")
    assert torch.equal(torch.random.get_rng_state(), before)
    images = pixels().float() / 127.5 - 1
    torch.testing.assert_close(found(images), judge(images))
    features = make_feature_net(f"judge:{tmp_path / 'judge'}")(pixels())
    torch.testing.assert_close(features.pooled, judge.features(images).detach())
    torch.testing.assert_close(features.logits, judge(images).detach())
    save_judge(Judge(1, 2), tmp_path / "judge")  # over another judge
    assert load_judge(tmp_path / "judge").channels == 1


def test_a_judge_does_not_overwrite_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        save_judge(Judge(1, 2), tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_a_judge_of_grey_images_refuses_colour(folder):
    net = net_of("grey judge", folder)
    assert net(pixels(channels=1)).pooled.shape == (2, 64)
    with pytest.raises(InputError, match=r"pixels \(B, 1, H, W\) for judge; got torch.uint8 \(2, 3, 12, 12\)"):
        net(pixels())


@pytest.mark.parametrize("wrong", [pixels().float(), pixels()[0], pixels(channels=2)])
def test_other_than_uint8_pixels_is_refused(wrong, folder):
    with pytest.raises(InputError, match=r"Expected uint8 pixels \(B, 1 or 3, H, W\) for judge"):
        net_of("judge", folder)(wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "Unknown feature network 'inceptoin'; did you mean inception"),
        ("judge", "Expected the folder of a judge, written by save_judge; got none"),
        (
            "judge:nowhere",
            r"judge.json; cannot read it \(No such file or directory\). Give a folder written by save_judge",
        ),
        ("inception:nowhere.pth", r"cannot read nowhere.pth \(No such file"),
        ("dinov2:nobody/nothing", "'nobody/nothing' to be a local folder or a reachable name on the"),
    ],
)
def test_missing_networks_are_one_sentence(name, message):
    with pytest.raises(InputError, match=message):
        make_feature_net(name)


def test_a_damaged_judge_is_one_sentence(tmp_path):
    folder = tmp_path / "judge"
    save_judge(Judge(1, 2), folder)
    whole = (folder / "judge.json").read_text()
    for text, message in (
        ("{", "Expected JSON in .*judge.json; the file is damaged"),
        ("[]", "in .*judge.json, keys and values; got a list"),
        (whole.replace('"channels": 1', '"channels": 0'), "judge.json: channels: expected more than 0; got 0"),
        (whole.replace('"channels": 1', '"channels": true'), "judge.json: channels: .*got true"),
        (whole.replace('"channels": 1', f'"channels": {10**40}'), "judge.json: channels: "),
        (whole.replace('"channels": 1', '"channels": [1]'), "judge.json: channels: .*got"),
        (whole.replace('"num_classes": 2', '"num_classes": 3'), "Expected weights that belong to .*readout.bias has"),
    ):
        (folder / "judge.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_judge(folder)
    (folder / "judge.json").write_text(whole)
    weights = bytearray((folder / "judge.safetensors").read_bytes())
    weights[-2] ^= 1
    (folder / "judge.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"Expected intact weights .* they have changed"):
        load_judge(folder)
    (folder / "judge.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"Expected intact weights in .*judge.safetensors; the file is damaged"):
        load_judge(folder)
    (folder / "judge.safetensors").unlink()
    with pytest.raises(InputError, match="Copy the judge's folder again"):
        load_judge(folder)


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'biflow\[encoders\]'"):
        make_feature_net(f"dinov2:{tmp_path}")
