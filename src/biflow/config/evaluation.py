"""The settings of `biflow evaluate`, and of sampling from the command line."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from biflow.config.base import Config
from biflow.config.choices import LabelSchedule, SplitName
from biflow.config.run import PictureReading, ReadingConfig

Count = Annotated[int, Field(ge=4, le=10_000_000)]


class EvaluationConfig(Config):
    """What is measured, and against what."""

    data: str
    """Real images: folder:PATH, npz:FILE, idx:FOLDER, hf:NAME or digits."""
    num: Count | None = None
    """Images to sample; none for 50,000, or all of an .npz."""
    method: str = "reverse"
    """Sampler, with its settings."""
    guidance: str = "0"
    """Guidance strength, with its settings."""
    sweep: tuple[float, ...] = ()
    """Guidance strengths to try first; the one with the lowest Fréchet distance is evaluated."""
    sweep_num: Count = 10_000
    """Images per strength of the sweep, from another seed."""
    features: tuple[str, ...] = ("inception",)
    """Feature networks: inception, dinov2 (each also :PATH), efficientnet or judge, a reference classifier
    trained on the real images. The first one chooses the guidance of a sweep."""
    references: tuple[str, ...] = ()
    """Statistics of the real images, a file per network: .safetensors, made if missing, or the ADM evaluator's .npz."""
    split: SplitName = "train"
    """Real images to compare with."""
    labels: LabelSchedule = "balanced"
    """Labels of the samples: classes in turn, or drawn at random."""
    seed: NonNegativeInt = 0
    """Seed of the samples."""
    redraw: bool = False
    """Resample images that contain NaN or Inf, and count them; otherwise they stop the evaluation."""
    batch_size: PositiveInt = 256
    """Images per batch; affects speed and memory only."""
    npz: str | None = None
    """Also write the samples to this .npz, as the ADM evaluator reads it."""
    reading: ReadingConfig = ReadingConfig()


class SampleConfig(Config):
    """What `biflow sample` can also be told."""

    batch_size: PositiveInt = 256
    """Images per batch; affects speed and memory only."""
    redraw: bool = False
    """Resample images that contain NaN or Inf, from other noise."""
    compile: bool | None = None
    """CUDA graphs and bfloat16; none: on a GPU, for 1,000 images or more."""


class ImagesConfig(Config):
    """What `biflow score`, `classify` and `edit` can be told about the images they are given."""

    reading: PictureReading = PictureReading()
    """How they are read; by default as the model's training images were."""
