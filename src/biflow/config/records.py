"""Records in JSON that biflow wrote and others may have changed: each is read here, and checked against a small model.

A record may hold more keys than its model names; they are kept.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, PositiveInt

from biflow.config.base import Config, check_config
from biflow.config.run import PictureReading, ReadingConfig
from biflow.config.training import Share
from biflow.errors import InputError
from biflow.inputs import read_json

Rows = Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
"""A table: a header, then its rows."""

R = TypeVar("R", bound="Record")

MOST_LETTERS = 300  # of a fault, which repeats the value that was found


class Record(Config):
    """Base of all records: values are not converted, and further keys are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=True)


class StageRecord(Record):
    """How one network was trained."""

    steps: int | None = None
    batch_size: int | None = None
    seconds: float = 0.0
    last: dict[str, float] = Field(default_factory=dict)


class ReadingRecord(PictureReading, Record):
    """How the training images were read, as far as it changes them."""

    test_share: Share = 0.0
    rejected_share: Share = 0.05
    image_column: str | None = None
    label_column: str | None = None


class FeaturesRecord(Record):
    """A frozen network."""

    kind: str = ""


class FinishRecord(Record):
    """How a reverse model was finished, as far as it changes what its metrics mean."""

    features: FeaturesRecord = FeaturesRecord()


class RunRecord(Record):
    """What later commands need of a run's config."""

    data: str | None = None
    reading: ReadingRecord = ReadingRecord()
    fit_finish: FinishRecord | None = None


class TrainingRecord(Record):
    """training.json: how a model was trained."""

    data: str | None = None
    data_digest: str | None = None
    """Of the data's canonical name: tells the same data from others, from any folder."""
    seed: int | None = None
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    device: str | None = None
    processes: int = 1
    biflow: str | None = None
    git: str | None = None
    config: RunRecord = RunRecord()


class MeasuredData(Record):
    """The real images of an evaluation."""

    name: str
    split: str
    images: int


class MeasuredSamples(Record):
    """The samples of an evaluation."""

    num: int
    method: str = ""
    guidance: str = ""
    finished_in: str | None = None
    """The network in whose features the model's training lowered the Fréchet distance of such samples."""


class Machine(Record):
    """Where a measurement ran."""

    device: str = ""


class Tables(Record):
    """The numbers of an evaluation as they are shown."""

    quality: Rows
    cost: Rows


class EvaluationRecord(Record):
    """evaluation.json: what `biflow evaluate` measured."""

    data: MeasuredData
    samples: MeasuredSamples
    machine: Machine = Machine()
    metrics: dict[str, dict[str, float | bool | None]]
    metric_titles: dict[str, dict[str, str]]
    tables: Tables


class JudgeRecord(Record):
    """judge.json: the sizes of a reference classifier, and what it was trained on."""

    format_version: int
    channels: Annotated[PositiveInt, Field(le=1024)]
    num_classes: Annotated[PositiveInt, Field(le=10**6)]
    trained_on: dict[str, Any] = Field(default_factory=dict)
    sha256: str | None = None
    """Of the weights; earlier versions wrote none."""


def read_record(path: Path, kind: type[R], *, what: str, repair: str) -> R:
    """Read a JSON file that holds a record of this kind; raises otherwise.

    what: names the file in errors; repair: the sentence that ends them.
    """
    content = read_json(path, repair)
    return check_record(kind, content, origin=f"Expected {what} in {path}", repair=repair)


def check_record(kind: type[R], content: Any, *, origin: str, repair: str) -> R:
    """Values -> a record of this kind; raises if a key that it needs is missing or of another type."""
    if not isinstance(content, Mapping):
        raise InputError(f"{origin}, keys and values; got a {type(content).__name__}. {repair}")
    try:
        return check_config(kind, content, origin=origin)
    except InputError as error:
        raise InputError(f"{shorten(str(error), MOST_LETTERS).rstrip('.')}. {repair}") from None


def finished_in(training: Mapping[str, Any] | None) -> str | None:
    """The kind of network in whose features a reverse model was finished, by the record of its training.

    >>> finished_in({"config": {"fit_finish": {"features": {"kind": "efficientnet"}}}})
    'efficientnet'
    """
    finish = _record_of(training).fit_finish
    return finish.features.kind if finish else None


def reading_of(training: Mapping[str, Any] | None) -> ReadingConfig:
    """How a model's training images were read, by the record of its training; the default where there is none.

    >>> reading_of({"config": {"reading": {"background": "black"}}}).background
    'black'
    """
    recorded = _record_of(training).reading
    return ReadingConfig(**recorded.model_dump(include={*type(recorded).model_fields}, exclude_unset=True))


def _record_of(training: Mapping[str, Any] | None) -> RunRecord:
    origin = "Expected the record of a model's training"
    return check_record(TrainingRecord, training or {}, origin=origin, repair="Leave it out.").config
