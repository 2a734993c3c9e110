"""What can be chosen outside training, by name."""

from typing import Literal

ScoreNoise = Literal["uniform", "training"]
Average = Literal["mean", "importance"]
ClassifyMethod = Literal["gradient", "steps", "bayes"]
ClassifyNoise = Literal["training", "uniform", "none"]
SplitName = Literal["train", "test"]
LabelSchedule = Literal["balanced", "random"]
