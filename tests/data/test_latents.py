import json
import os
import random
import re
import shutil
from contextlib import suppress

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from biflow.cli import main as cli
from biflow.config import ReadingConfig
from biflow.data.datasets import ImageSet
from biflow.data.images import to_pil
from biflow.data.latents import (
    LatentWriter,
    damaged_shards,
    manifest_checksum,
    open_latents,
    read_manifest,
    write_manifest,
)
from biflow.data.open import open_data
from biflow.errors import InputError
from biflow.models.codec import make_codec
from biflow.tensors import file_checksum
from biflow.training.cache_latents import encode_data
from biflow.training.stages import check_data, to_latents
from tests.builders import read_npz, tiny_config, tiny_run


def colours(count: int = 10) -> ImageSet:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.arange(count) % 2, ("a", "b"))


@pytest.fixture
def codec(autoencoder):
    return make_codec(f"vae:{autoencoder}")


def write(folder, codec, data, *, flip=False, processes=1):
    """A cache written by this many processes."""
    folder.mkdir()
    for rank in range(processes):
        encoder = LatentWriter(folder, codec, flip=flip, batch_size=4, rank=rank, size=processes)
        names = encoder.write(data, "train", lambda _: None)
    facts = {"codec": {"name": "x", "sha256": encoder.identity}, "image_shape": (3, 8, 8), "class_names": ["a", "b"]}
    write_manifest(folder, names, facts)
    return open_latents(folder, ReadingConfig()).train


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("biflow.data.latents.SHARD_SIZE", 4)


def test_a_cache_holds_the_moments_labels_and_classes_of_every_image(codec, tmp_path):
    data = colours()
    cache = write(tmp_path / "cache", codec, data)
    assert len(cache) == 10
    assert cache.image_shape == (3, 8, 8)
    assert cache.class_names == ("a", "b")
    assert torch.equal(cache.labels, data.labels)
    indices = torch.tensor([9, 0, 5, 4])
    torch.testing.assert_close(cache.read(indices), codec.moments(data.images[indices]))


def test_several_processes_write_the_same_cache(codec, tmp_path):
    one, two = (write(tmp_path / str(n), codec, colours(), processes=n) for n in (1, 2))
    assert torch.equal(one.read(torch.arange(10)), two.read(torch.arange(10)))
    assert {each.name for each in one.folder.iterdir()} == {each.name for each in two.folder.iterdir()}


def test_mirrored_copies_follow_the_images(codec, tmp_path):
    data = colours()
    cache = write(tmp_path / "cache", codec, data, flip=True)
    assert len(cache) == 20
    torch.testing.assert_close(cache.read(torch.tensor([13])), codec.moments(data.images[3:4].flip(-1)))
    assert torch.equal(cache.labels, data.labels.repeat(2))


def test_latents_are_drawn_anew_for_every_key_with_the_moments_of_the_encoder(codec, tmp_path):
    data = colours(2)
    cache = write(tmp_path / "cache", codec, data)
    moments = cache.read(torch.tensor([1])).expand(4000, -1, -1, -1)
    drawn = to_latents(codec, moments, list(range(4000)), 0, "flow", 5)
    mean, log_variance = codec.moments(data.images[1:])[0].chunk(2)
    torch.testing.assert_close(drawn.mean(0), codec.scaled(mean), atol=0.1 * codec.factor.item(), rtol=0)
    spread = (0.5 * log_variance).exp() * codec.factor
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.1, atol=0)
    again = to_latents(codec, moments[:2], [0, 1], 0, "flow", 6)
    assert not torch.allclose(drawn[:2], again)
    torch.testing.assert_close(to_latents(codec, moments[:2], [7, 8], 0, "flow", 5), drawn[7:9])


def test_encoding_resumes(codec, tmp_path, monkeypatch):
    data, folder = colours(), tmp_path / "cache"
    folder.mkdir()

    def encoder():
        return LatentWriter(folder, codec, flip=False, batch_size=4, rank=0, size=1)

    done = []

    def stop_after_two(count):
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder().write(data, "train", stop_after_two)
    (folder / "train_00001.safetensors").write_bytes(b"damaged since")
    written = []
    whole = LatentWriter._write_shard
    monkeypatch.setattr(
        LatentWriter, "_write_shard", lambda self, name, *a, **k: written.append(name) or whole(self, name, *a, **k)
    )
    encoder().write(data, "train", lambda _: None)
    assert written == ["train_00001.safetensors", "train_00002.safetensors"]


def test_shards_of_another_codec_are_written_again(codec, tmp_path):
    data, shards = colours(4), []
    for _ in range(2):
        encoder = LatentWriter(tmp_path, codec, flip=False, batch_size=4, rank=0, size=1)
        encoder.write(data, "train", lambda _: None)
        shards.append(file_checksum(tmp_path / "train_00000.safetensors"))
        with torch.no_grad():
            next(codec.autoencoder.parameters()).add_(0.1)
    assert shards[0] != shards[1]


def test_latents_of_another_codec_are_refused(codec, tmp_path):
    cache = write(tmp_path / "cache", codec, colours())
    model = tiny_config(codec="vae:x", channels=4, num_classes=2)
    check_data(tiny_run(model=model), cache, codec)
    with torch.no_grad():
        next(codec.autoencoder.parameters()).flatten()[0].add_(1e-3)
    with pytest.raises(InputError, match=r"the weights of model\.codec are different"):
        check_data(tiny_run(model=model), cache, codec)


def test_a_changed_shard_is_found(codec, tmp_path):
    cache = write(tmp_path / "cache", codec, colours())
    assert damaged_shards(cache.folder) == []
    path = cache.folder / "train_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert damaged_shards(cache.folder) == ["train_00001.safetensors"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "latents.json").unlink(), "it has no latents.json"),
        (lambda folder: (folder / "latents.json").write_text("{"), "latents.json; the file is damaged"),
        (
            lambda folder: (folder / "latents.json").write_text('{"format_version": 2}'),
            "a manifest of latents, format 1",
        ),
        (lambda folder: (folder / "train_00000.safetensors").unlink(), "missing or truncated"),
        (lambda folder: (folder / "train_00000.safetensors").write_bytes(b"x"), "missing or truncated"),
    ],
)
def test_an_incomplete_cache_is_refused(codec, tmp_path, damage, message):
    damage(write(tmp_path / "cache", codec, colours()).folder)
    with pytest.raises(InputError, match=message):
        open_data(f"latents:{tmp_path / 'cache'}", (3, 8, 8), ReadingConfig())


def test_a_shard_that_has_changed_is_not_read(codec, tmp_path):
    """One flipped bit, anywhere: the shards that are intact are read, this one is refused when its turn comes."""
    cache = write(tmp_path / "cache", codec, colours())
    path = cache.folder / "train_00001.safetensors"
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(10):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"train_00001"):
            open_latents(cache.folder, ReadingConfig()).train.read(torch.tensor([0, 5]))
    path.write_bytes(whole)
    opened = open_latents(cache.folder, ReadingConfig()).train
    assert torch.equal(opened.read(torch.tensor([0, 5])), cache.read(torch.tensor([0, 5])))


def rewrite(folder, change, *, signed=True):
    """Change the manifest; signed: with the right checksum, as someone who means it would write."""
    content = json.loads((folder / "latents.json").read_text())
    change(content)
    if signed:
        content["sha256"] = manifest_checksum(content)
    (folder / "latents.json").write_text(json.dumps(content))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        *(lambda facts, key=key: facts.pop(key) for key in ("codec", "image_shape", "class_names", "shards")),
        *(lambda facts, key=key: facts["shards"][0].pop(key) for key in ("file", "split", "count", "bytes", "sha256")),
        lambda facts: facts["shards"][0].update(file="/etc/passwd"),
        lambda facts: facts["shards"][0].update(file="../cache/train_00000.safetensors"),
        lambda facts: facts["shards"][0].update(count=3),
        lambda facts: facts["shards"][0].update(count=-4),
        lambda facts: facts["shards"][0].update(count="4"),
        lambda facts: facts["shards"][0].update(sha256=4),
        lambda facts: facts["shards"].append(facts["shards"][0]),
        lambda facts: facts.update(shards={"file": 1}),
        lambda facts: facts.update(shards=[[]]),
        lambda facts: facts.update(image_shape=[3, 8]),
        lambda facts: facts.update(image_shape=[3, 8, 0]),
        lambda facts: facts.update(latent_shape=[4, 4, 5]),
        lambda facts: facts.update(class_names=["a"]),
        lambda facts: facts.update(class_names=[[], 1]),
        lambda facts: facts.update(codec={"name": "x"}),
        lambda facts: facts.update(codec="x"),
        lambda facts: facts.update(stranger=1),
    ],
)
def test_a_manifest_of_something_else_is_one_sentence(whole_cache, tmp_path, change, signed):
    shutil.copytree(whole_cache, tmp_path / "cache")
    rewrite(tmp_path / "cache", change, signed=signed)
    with pytest.raises(InputError) as caught:
        open_latents(tmp_path / "cache", ReadingConfig())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="session")
def whole_cache(autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    write(folder, make_codec(f"vae:{autoencoder}"), colours())
    return folder


def test_a_flipped_bit_of_the_manifest_changes_no_number(whole_cache, tmp_path):
    shutil.copytree(whole_cache, tmp_path / "cache")
    path, draw, right = tmp_path / "cache" / "latents.json", random.Random(0), read_manifest(whole_cache)
    whole = path.read_bytes()
    for _ in range(60):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with suppress(InputError):
            assert read_manifest(tmp_path / "cache") == right  # a blank that became another


def test_a_manifest_without_a_checksum_is_read(whole_cache, tmp_path):
    shutil.copytree(whole_cache, tmp_path / "cache")
    rewrite(tmp_path / "cache", lambda facts: facts.pop("sha256"), signed=False)
    assert len(open_latents(tmp_path / "cache", ReadingConfig()).train) == 10


def test_moments_that_are_nan_are_not_read(whole_cache, tmp_path):
    shutil.copytree(whole_cache, tmp_path / "cache")
    path = tmp_path / "cache" / "train_00000.safetensors"
    tensors = load_file(path)
    tensors["moments"][2, 3] = torch.nan
    save_file(tensors, path)
    rewrite(tmp_path / "cache", lambda facts: facts["shards"][0].update(sha256=file_checksum(path)))
    cache = open_latents(tmp_path / "cache", ReadingConfig()).train
    cache.read(torch.tensor([0, 1, 3]))
    with pytest.raises(InputError, match="Expected finite moments"):
        cache.read(torch.tensor([2]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda found: {"moments": found["moments"][:, :-1].contiguous()},  # no pairs of means and log-variances
        lambda found: {"labels": found["labels"] - 1},
        lambda found: {"labels": found["labels"] + 1},
        lambda found: {"labels": found["labels"].int()},
        lambda found: {"moments": found["moments"].double()},
    ],
)
def test_shards_hold_moments_and_labels_of_the_cache(whole_cache, tmp_path, wrong):
    shutil.copytree(whole_cache, tmp_path / "cache")
    path = tmp_path / "cache" / "train_00000.safetensors"
    tensors = load_file(path)
    save_file(tensors | wrong(tensors), path)

    def change(facts):
        facts["shards"][0].update(sha256=file_checksum(path), bytes=path.stat().st_size)
        facts["latent_shape"] = None

    rewrite(tmp_path / "cache", change)
    with pytest.raises(InputError, match="moments and labels"):
        open_latents(tmp_path / "cache", ReadingConfig())


def test_every_shard_is_written_by_one_process(codec, tmp_path):
    writers = [LatentWriter(tmp_path, codec, flip=False, batch_size=4, rank=rank, size=3) for rank in range(3)]
    names = [shard.name for writer in writers for shard in writer.own(writer.shards(17, "train"))]
    assert sorted(names) == [shard.name for shard in writers[0].shards(17, "train")]


@pytest.mark.parametrize("change", [{"flip": True}, {"test_share": 0.1}])
def test_settings_fixed_by_encoding_cannot_be_changed(codec, tmp_path, change):
    write(tmp_path / "cache", codec, colours())
    with pytest.raises(InputError, match=f"reading.{next(iter(change))}="):
        open_latents(tmp_path / "cache", ReadingConfig(**change))


def test_the_manifest_names_every_shard_with_size_and_checksum(codec, tmp_path):
    cache = write(tmp_path / "cache", codec, colours())
    shards = json.loads((cache.folder / "latents.json").read_text())["shards"]
    assert [shard["count"] for shard in shards] == [4, 4, 2]
    assert all(len(shard["sha256"]) == 64 and shard["bytes"] for shard in shards)


def test_a_folder_is_encoded_trained_on_and_sampled_from_the_command_line(autoencoder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "images"
    for i, image in enumerate(colours(40).images):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)

    def biflow(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["biflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0

    cache, run = tmp_path / "cache", tmp_path / "run"
    encode = ["data", "encode", f"folder:{folder}", "--vae", autoencoder, "--out", cache]
    whole, write = LatentWriter._write_shard, LatentWriter.write
    monkeypatch.setattr(LatentWriter, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert biflow(*encode) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    assert biflow("data", "check", cache) == 2
    assert "Run biflow data encode to its end" in capsys.readouterr().err
    monkeypatch.setattr(LatentWriter, "write", write)  # nothing was encoded yet, so that the settings may change
    encode += ["--size", 8, "--set", "reading.flip=true", "--set", "reading.test_share=0.2"]

    def fail_at_last(self, name, *arguments, **options):
        if name.startswith("test"):
            raise KeyboardInterrupt
        whole(self, name, *arguments, **options)

    monkeypatch.setattr(LatentWriter, "_write_shard", fail_at_last)
    assert biflow(*encode) == 130
    assert biflow(*encode, "--size", 16) == 2
    assert re.search(r"Expected size=8, .*; got 16\. Encode with the same", capsys.readouterr().err)
    monkeypatch.setattr(LatentWriter, "_write_shard", whole)
    assert biflow(*encode) == 0
    assert "--set model.channels=4 --set model.image_size=4 --set model.num_classes=2" in capsys.readouterr().out
    assert biflow("data", "check", cache) == 0
    assert "All shards are intact" in capsys.readouterr().out
    written = {each.name: each.stat().st_mtime_ns for each in cache.glob("*.safetensors")}
    assert biflow(*encode) == 0  # again: it is complete
    assert {each.name: each.stat().st_mtime_ns for each in cache.glob("*.safetensors")} == written
    settings = [f"data=latents:{cache}", "model.image_size=4", "model.channels=4", "model.num_classes=2"]
    train = ["train", "biflow_digits", "--smoke", "--out", run]
    for setting in [*settings, "watch.validate_every=10"]:
        train += ["--set", setting]
    assert biflow(*train) == 2
    assert f"Set model.codec=vae:{autoencoder}" in capsys.readouterr().err
    assert biflow(*train, "--set", f"model.codec=vae:{autoencoder}") == 0
    assert biflow("sample", run / "model", "--num", 4, "--out", tmp_path / "x.npz") == 0
    assert read_npz(tmp_path / "x.npz")["arr_0"].shape == (4, 8, 8, 3)


def test_a_folder_without_images_set_aside_is_encoded_whole(autoencoder, tmp_path):
    for place, image in enumerate(colours(6).images):
        (tmp_path / "images").mkdir(exist_ok=True)
        to_pil(image).save(tmp_path / "images" / f"{place}.png")
    options = {"size": 8, "batch_size": 4, "overrides": [], "console": Console(quiet=True)}
    assert encode_data(f"folder:{tmp_path / 'images'}", str(autoencoder), tmp_path / "cache", **options) == 6
    kept = open_latents(tmp_path / "cache", ReadingConfig())
    assert (len(kept.train), len(kept.test)) == (6, 0)


def test_shards_are_verified_once_and_again_when_they_are_written_anew(whole_cache, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("biflow.data.latents._differs", lambda path, _: bool(read.append(path)))
    folder = tmp_path / "cache"
    shutil.copytree(whole_cache, folder)
    first = open_latents(folder, ReadingConfig()).train
    assert len(read) == len(read_manifest(folder)["shards"])
    assert open_latents(folder, ReadingConfig()).train.listing_digest() == first.listing_digest()
    assert len(read) == len(read_manifest(folder)["shards"])
    os.utime(folder / read_manifest(folder)["shards"][0]["file"], ns=(1, 1))
    open_latents(folder, ReadingConfig())
    assert len(read) == len(read_manifest(folder)["shards"]) + 1
