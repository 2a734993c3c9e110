"""Encode a data set into a latent cache, with one or more processes."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from biflow.config import ReadingConfig
from biflow.config.base import Config, check_recorded, parse_config, to_yaml
from biflow.console import counting
from biflow.data.datasets import ImageStream, Source, Split
from biflow.data.latents import MANIFEST_FILE, LatentWriter, description, read_manifest, write_manifest
from biflow.data.open import check_apart, open_data
from biflow.data.scan import write_rejected
from biflow.distributed import join_world
from biflow.errors import InputError
from biflow.files import check_new_folder, hold_folder, remove_leftovers, write_text
from biflow.models.codec import VaeCodec, make_codec
from biflow.training.provenance import check_same_data, describe_data

SETTINGS_FILE = "encode.yaml"
DATA_FILE = "data.json"
REJECTED_FILE = "rejected.txt"
LONG = 7 * 86_400  # seconds; processes meet only before the first shard and after the last


class EncodeConfig(Config):
    """Settings of a latent cache; an interrupted command resumes only with the same."""

    data: str
    vae: str
    size: int
    reading: ReadingConfig = ReadingConfig()


def encode_data(
    data: str, vae: str, out: Path, *, size: int, batch_size: int, overrides: Iterable[str], console: Console
) -> int | None:
    """Write a data set's latent cache to `out`; returns its number of entries in the main process, None in others."""
    start = {"data": data, "vae": vae, "size": size}
    config = parse_config(EncodeConfig, start, overrides, origin="the settings")
    check_apart(data, out)
    codec = make_codec(f"vae:{vae}")
    assert isinstance(codec, VaeCodec)
    image_shape = (int(codec.autoencoder.config.in_channels), size, size)
    latent_shape = codec.latent_shape(image_shape)
    split = open_data(data, image_shape, config.reading)
    with join_world(LONG) as world, ExitStack() as held:
        world.check_same([describe_data(split.train), describe_data(split.test)], f"the data {data!r}")
        begun = world.on_main(lambda: begin_cache(out, config, split, held))
        if world.gather(begun)[0] == "complete":
            return world.on_main(lambda: finish_manifest(out))
        codec.to(world.device)
        share = {"rank": world.rank, "size": world.size}
        encoder = LatentWriter(out, codec, flip=config.reading.flip, batch_size=batch_size, **share)
        parts = {"train": split.train, "test": split.test}
        names = [name for kind, part in parts.items() for name in write_split(encoder, part, kind, console)]
        facts = {
            "data": data,
            "codec": {"name": vae, "sha256": encoder.identity, "scaling": codec.scaling},
            "image_shape": image_shape,
            "latent_shape": latent_shape,
            "class_names": list(split.train.class_names),
        }
        world.wait()
        return world.on_main(lambda: write_manifest(out, names, facts))


def write_split(encoder: LatentWriter, data: Source, split: str, console: Console) -> list[str]:
    """Write the shards of one split and show progress; returns their names."""
    if isinstance(data, ImageStream):
        raise InputError("Expected a data set with random access to encode; got a stream. Set reading.streaming=false.")
    own = encoder.own(encoder.shards(len(data), split))
    total, share = sum(len(shard.indices) for shard in own), f" (1 of {encoder.size} shares)" * (encoder.size > 1)
    with counting(console, f"encoding {split}{share}", total, shown=encoder.rank == 0) as progress:
        return encoder.write(data, split, progress)


def begin_cache(out: Path, config: EncodeConfig, split: Split[Source], held: ExitStack) -> str:
    """Hold the folder of a cache and record its settings and data; returns "complete" if it is, else "begun"."""
    settings, manifest = out / SETTINGS_FILE, out / MANIFEST_FILE
    if not settings.is_file():
        check_new_folder(out)
    elif manifest.is_file() or any(out.glob("*.safetensors")):
        check_recorded(settings, config, "Encode with the same settings, or into another folder.")
    held.enter_context(hold_folder(out))
    remove_leftovers(out)
    write_text(settings, to_yaml(config))
    if not any(out.glob("*.safetensors")):
        (out / DATA_FILE).unlink(missing_ok=True)
    check_same_data(out / DATA_FILE, {"train": split.train, "test": split.test})
    for part in (split.train, split.test):
        if part.rejected:
            write_rejected(out / REJECTED_FILE, part.rejected)
    return "complete" if manifest.is_file() else "begun"


def finish_manifest(out: Path) -> int:
    """Remove what a command that was killed after it wrote the manifest left; returns the number of images."""
    shards = read_manifest(out)["shards"]
    for shard in shards:
        description(out / shard["file"]).unlink(missing_ok=True)
    return sum(shard["count"] for shard in shards)
