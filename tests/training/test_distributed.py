"""Two real processes (gloo) train like one."""

import multiprocessing
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console

from biflow.cli.process import say_error
from biflow.config import AlignConfig, FlowFitConfig, RunConfig
from biflow.distributed import join_world
from biflow.errors import InputError, Interrupted
from biflow.training.hooks import read_history
from biflow.training.run import open_run
from biflow.training.stages import train_model
from tests.builders import tiny_images, tiny_run
from tests.training.test_finish import FINISH

RUNS = {
    "ddp": tiny_run,
    "ddp, joint, aligned, muon": lambda: with_muon(tiny_run(stage="joint", fit_flow=aligned_fit())),
    "fsdp, aligned, muon": lambda: with_muon(sharded(aligned_fit())),
    "finish": lambda: tiny_run(fit_finish=FINISH),
    "fsdp, finish": lambda: sharded(tiny_run().fit_flow, fit_finish=FINISH.model_copy(update={"sharding": "fsdp"})),
    "fsdp, aligned, accumulation": lambda: sharded(aligned_fit(accumulate=2, recompute=True)),
}


def sharded(fit_flow: FlowFitConfig, **changes: object) -> RunConfig:
    """A run with FSDP2 in both stages."""
    change = {"sharding": "fsdp"}
    fit_reverse = tiny_run().fit_reverse
    fits = {"fit_flow": fit_flow.model_copy(update=change), "fit_reverse": fit_reverse.model_copy(update=change)}
    return tiny_run(**fits, **changes)


def with_muon(run: RunConfig) -> RunConfig:
    fits = {name: getattr(run, name).model_copy(update={"optimizer": "muon"}) for name in ("fit_flow", "fit_reverse")}
    return run.model_copy(update=fits)


def aligned_fit(**changes: object) -> FlowFitConfig:
    align = AlignConfig(layers=[[2, 1], [3, 2]], hidden_width=8)
    return FlowFitConfig(**{**tiny_run().fit_flow.model_dump(), "align": align, **changes})


def train_in_process(rank: int, size: int, port: int, work: tuple[str, str, int]) -> None:
    """Entry point of one process, with a launcher's environment variables; a crash prints a traceback."""
    import faulthandler
    import os

    faulthandler.enable()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    run_in(*work)


def run_in(kind: str, folder: str, stop_at: int = 0) -> None:
    """Start or resume a run, to its end or for `stop_at` steps."""
    resume = (Path(folder) / "config.yaml").exists()
    with (
        suppress(Interrupted),
        open_run(RUNS[kind](), tiny_images(), Path(folder), resume=resume, console=Console(quiet=True)) as run,
    ):
        taken = iter(range(1, 1000))
        model = train_model(replace(run, should_stop=lambda: next(taken) == stop_at)).model
        if run.world.is_main:
            weights = {"flow": model.flow.state_dict(), "reverse": model.reverse.state_dict()}
            torch.save(weights, Path(folder) / "weights.pt")


def run_in_two(kind: str, folder: str, stop_at: int = 0) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train_in_process, args=(2, port, (kind, folder, stop_at)), nprocs=2)


def check_alike(one: Path, two: Path) -> None:
    """Assert that two runs took the same steps, with losses and weights equal up to rounding."""
    histories = [read_history(folder / "metrics.jsonl") for folder in (one, two)]
    assert [line["step"] for line in histories[0]] == [line["step"] for line in histories[1]]
    losses = [torch.tensor([line["loss"] for line in history]) for history in histories]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (one, two)]
    for part in ("flow", "reverse"):
        for name, tensor in weights[0][part].items():
            if name == "flow_digest":  # a hash of weights that are close, not equal
                continue
            torch.testing.assert_close(read(weights[1][part][name], name), read(tensor, name), rtol=1e-3, atol=1e-4)


def read(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """What the softmax reads: not the keys' bias, whose gradient is only rounding error, which AdamW scales up."""
    return torch.cat(tensor.chunk(3)[::2]) if name.endswith("qkv.bias") else tensor


@pytest.mark.parametrize("kind", RUNS)
def test_two_processes_train_like_one(kind, tmp_path):
    run_in(kind, str(tmp_path / "one"))
    run_in_two(kind, str(tmp_path / "two"))
    check_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("resume_in", [run_in_two, run_in], ids=["two processes", "one process"])
def test_a_sharded_checkpoint_resumes_at_any_world_size(resume_in, tmp_path):
    kind = "fsdp, aligned, muon"
    run_in(kind, str(tmp_path / "unbroken"))
    run_in_two(kind, str(tmp_path / "broken"), 3)
    assert not (tmp_path / "broken" / "weights.pt").exists()
    resume_in(kind, str(tmp_path / "broken"))
    check_alike(tmp_path / "unbroken", tmp_path / "broken")


def environment(**variables: object) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return {name: str(value) for name, value in {**address, **variables}.items()}


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"WORLD_SIZE": "two"}, "variable WORLD_SIZE; got 'two'"),
        ({"WORLD_SIZE": "²"}, "variable WORLD_SIZE; got '²'"),
        ({"WORLD_SIZE": "-1"}, "variable WORLD_SIZE; got '-1'"),
        ({"WORLD_SIZE": "0"}, "RANK below WORLD_SIZE in the environment; got 0 and 0"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK below WORLD_SIZE in the environment; got 5 and 2"),
        ({"RANK": "1"}, "RANK below WORLD_SIZE in the environment; got 1 and 1"),
        ({"WORLD_SIZE": "2"}, "variable RANK; got None"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"}, "variable LOCAL_RANK; got 'x'"),
    ],
)
def test_variables_of_no_launcher_are_one_sentence(monkeypatch, variables, fault):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=fault), join_world():
        pass


def test_processes_that_do_not_meet_are_one_sentence(monkeypatch):
    for name, value in environment(WORLD_SIZE=2, RANK=0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"Expected 2 processes to meet; process 0 got: .*Start all"), join_world(1):
        pass
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(InputError, match="MASTER_ADDR"), join_world(1):
        pass


def other_data(rank, folder):
    with open_run(tiny_run(), tiny_images(seed=rank), folder, resume=False, console=Console(quiet=True)):
        pass


def fault_of_one(rank, _):
    with join_world(9) as world:
        if rank:
            raise InputError("The disk of this machine is gone.")
        world.wait()


class NotSent(Exception):
    """An error that cannot be pickled, as some libraries have."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def fault_of_the_first(_, __):
    def fail():
        raise NotSent("no", "quota")

    with join_world(9) as world:
        try:
            world.on_main(fail)
        except RuntimeError as error:
            raise InputError(str(error)) from None


def fault_before_they_meet(rank, _):
    if rank:
        raise InputError("The disk of this machine is gone.")


def hang(rank, _):
    with join_world(1) as world:
        time.sleep(3 * rank)
        world.wait()


CASES = {
    other_data: ["Error: Expected the data 'digits' to be the same in all 2 processes; process 0 differs from 1.", ""],
    fault_of_one: [
        "Error: Expected 2 processes that run until the end; process 0 lost",
        "Error in process 1: The disk",
    ],
    fault_of_the_first: ["Error: NotSent: no quota", "Error in process 1: NotSent: no quota"],
    fault_before_they_meet: ["", "Error in process 1: The disk of this machine is gone."],
    hang: ["process 0 lost another one, or waited too long for it", "process 1 lost another one"],
}


def say_fault(case, rank: int, variables: dict[str, str], folder: Path) -> None:
    os.environ |= {**variables, "RANK": str(rank)}
    with (folder / f"said_{rank}").open("w") as sys.stderr:
        try:
            case(rank, folder / "run")
        except InputError as error:
            say_error(error)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_every_process_with_a_fault_of_its_own_says_it(case, tmp_path):
    variables, fork = environment(WORLD_SIZE=2), multiprocessing.get_context("fork")
    both = [fork.Process(target=say_fault, args=(case, rank, variables, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=60)
        assert process.exitcode == 0
    for rank, message in enumerate(CASES[case]):
        said = (tmp_path / f"said_{rank}").read_text()
        assert message in said if message else not said
        assert said.count("Error") == bool(message)
