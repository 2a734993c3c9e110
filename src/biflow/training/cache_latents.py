"""Encode a data set into a latent cache, with one or more processes."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from biflow.config import ReadingConfig
from biflow.config.base import Config, check_recorded, parse_config, to_yaml
from biflow.console import counting
from biflow.data.datasets import ImageStream, Source
from biflow.data.latents import MANIFEST_FILE, LatentWriter, write_manifest
from biflow.data.open import check_apart, open_data
from biflow.data.scan import write_rejected
from biflow.distributed import join_world
from biflow.errors import InputError
from biflow.files import check_new_folder, write_text
from biflow.models.codec import VaeCodec, make_codec

SETTINGS_FILE = "encode.yaml"
REJECTED_FILE = "rejected.txt"


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
    with join_world() as world:
        world.on_main(lambda: check_cache_folder(out, config))
        split = open_data(data, image_shape, config.reading)
        codec.to(world.device)
        flip, share = config.reading.flip, {"rank": world.rank, "size": world.size}
        encoder = LatentWriter(out, codec, flip=flip, batch_size=batch_size, **share)
        kinds = {"train": split.train, "test": split.test}
        names = [name for kind, part in kinds.items() for name in write_split(encoder, part, kind, console)]
        facts = {
            "data": data,
            "codec": {"name": vae, "sha256": encoder.identity, "scaling": codec.scaling},
            "image_shape": image_shape,
            "latent_shape": latent_shape,
            "class_names": list(split.train.class_names),
        }
        for part in kinds.values():
            if part.rejected and world.is_main:
                write_rejected(out / REJECTED_FILE, part.rejected)
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


def check_cache_folder(out: Path, config: EncodeConfig) -> None:
    """Raise unless a cache with these settings can start or resume in this folder."""
    settings = out / SETTINGS_FILE
    if settings.is_file():
        if any(out.glob("*.safetensors")):
            check_recorded(settings, config, "Encode with the same settings, or into another folder.")
        if (out / MANIFEST_FILE).is_file():
            raise InputError(f"Expected a new or unfinished latent cache; {out} is complete. Choose another folder.")
    else:
        check_new_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    write_text(settings, to_yaml(config))
