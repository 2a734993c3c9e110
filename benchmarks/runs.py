"""Training runs that benchmarks share: resumed if interrupted, and reused only with the same settings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from biflow.config import FitConfig, RunConfig
from biflow.config.base import check_recorded, parse_config
from biflow.data.datasets import ImageSet
from biflow.errors import InputError
from biflow.features.judge import Judge, load_judge, save_judge
from biflow.training.loop import Hook, Trainer
from biflow.training.run import CONFIG_FILE, MODEL_FOLDER, keep_model, open_run
from biflow.training.stages import CLASSIFIER_FIT, fit_judge, train_model

JUDGE_FOLDER = "judge"
Listen = Callable[[str, Trainer], Sequence[Hook]]


def trained(
    config: RunConfig, data: ImageSet, folder: Path, *, console: Console, watch: Listen = lambda *_: []
) -> Path:
    """The model folder of a run: reused if it is complete, otherwise trained or resumed.

    watch: returns additional hooks for (stage, trainer).
    """
    recorded, model = folder / CONFIG_FILE, folder / MODEL_FOLDER
    if model.exists():
        if parse_config(RunConfig, recorded.read_text(encoding="utf-8"), origin=str(recorded)) != config:
            raise InputError(
                f"Expected the same settings as the run in {folder}. Delete that run, or choose another --runs folder."
            )
        return model
    start = time.perf_counter()
    with open_run(config, data, folder, resume=recorded.exists(), console=console) as run:
        make_hooks = run.make_hooks
        watched = replace(run, make_hooks=lambda stage, trainer: [*make_hooks(stage, trainer), *watch(stage, trainer)])
        keep_model(run, train_model(watched), model)
    print(f"trained {folder} in {time.perf_counter() - start:.0f} s", flush=True)
    return model


def trained_judge(config: RunConfig, data: ImageSet, folder: Path, fit: FitConfig = CLASSIFIER_FIT) -> Judge:
    """The reference classifier of a run's data, loaded if it has been trained before, by any number of processes."""
    kept, resume = folder / JUDGE_FOLDER, (folder / CONFIG_FILE).exists()
    if not kept.exists():
        with open_run(config, data, folder, resume=resume, console=Console(quiet=True)) as run:
            save_judge(fit_judge(run, fit)[0], kept)
    check_recorded(folder / CONFIG_FILE, config, "Delete that run, or choose another --runs folder.")
    return load_judge(kept)
