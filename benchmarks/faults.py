"""Fault tolerance of training: kills at random moments, termination, a full disk, corrupted checkpoints.

    python benchmarks/faults.py              # about five minutes; writes docs/results/faults.{md,json}

The faults are real.  Training processes are killed with SIGKILL, half of them while writing a checkpoint, and resumed
until the run completes; its weights are then compared bit for bit with those of an uninterrupted run.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from biflow.checkpoint import load_model, save_model
from biflow.config import RunConfig, load_recipe
from biflow.data.datasets import load_data
from biflow.errors import InputError
from biflow.files import write_text
from biflow.training import checkpoints
from biflow.training.checkpoints import Damaged
from biflow.training.provenance import describe_machine
from biflow.training.run import CONFIG_FILE, open_run
from biflow.training.stages import train_model

SETTINGS = ("fit_flow.steps=1200", "fit_reverse.steps=1200", "fit_flow.save_every=20", "fit_reverse.save_every=20")
FORK = multiprocessing.get_context("fork")  # children do not import everything again


def config() -> RunConfig:
    """The digits' recipe, both stages, with frequent checkpoints."""
    return load_recipe("biflow_digits", SETTINGS)


def train(folder: Path, limit: int | None = None) -> None:
    """Train or resume a run as `biflow train` does; limit: maximum file size in bytes."""
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    resume = (folder / CONFIG_FILE).exists()
    with open_run(config(), load_data("digits").train, folder, resume=resume, console=Console(quiet=True)) as run:
        save_model(train_model(run).model, folder / "model")


def session(work: Callable[..., None], *arguments: Any) -> Any:
    """Start a process that trains."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def unfinished(folder: Path) -> set[Path]:
    """The checkpoints that are being written, or were when a process was killed."""
    return set(folder.glob("states/*/.step_*.part"))


def kill_and_resume(folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill and resume a run this many times, then let it finish."""
    done = in_a_save = 0
    start = time.perf_counter()
    while done < kills:
        left = unfinished(folder)  # by earlier kills
        process = session(train, folder)
        time.sleep(draw.uniform(0.05, 1.2))
        while done % 2 and process.is_alive() and unfinished(folder) <= left:
            time.sleep(0.0005)
        if not process.is_alive():
            raise RuntimeError("The run finished before all kills; increase the steps in SETTINGS.")
        time.sleep(draw.uniform(0, 0.004) if done % 2 else 0)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        in_a_save += not unfinished(folder) <= left
        done += 1
    last = session(train, folder)
    last.join()
    return {"kills": done, "in_a_save": in_a_save, "seconds": time.perf_counter() - start, "exit_code": last.exitcode}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with bit-identical weights."""
    a, b = load_model(one / "model"), load_model(other / "model")
    assert a.reverse
    assert b.reverse
    states = [(a.flow.state_dict(), b.flow.state_dict()), (a.reverse.state_dict(), b.reverse.state_dict())]
    return all(torch.equal(x[name], y[name]) for x, y in states for name in x)


def terminate(folder: Path, draw: random.Random) -> dict[str, float]:
    """Send SIGTERM to `biflow train`: seconds until it ends, exit code, and whether it saved."""
    command = [sys.executable, "-m", "biflow", "train", "biflow_digits", "--out", str(folder)]
    for setting in SETTINGS:
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(folder.glob("states/*/step_*")):
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 2))
    start = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate()
    return {"seconds": time.perf_counter() - start, "exit_code": process.returncode, "saved": float("saved" in output)}


def fill_disk(folder: Path, uninterrupted: Path) -> dict[str, Any]:
    """Make every save fail half way by a file-size limit, then resume without the limit."""
    stopped = session(train, folder)
    while len(list(folder.glob("states/flow/step_*"))) < 2:
        time.sleep(0.01)
    os.kill(stopped.pid, signal.SIGTERM)
    stopped.join()
    before = sorted(path.name for path in folder.glob("states/flow/step_*"))
    size = (folder / "states" / "flow" / before[-1] / checkpoints.STATE_FILE).stat().st_size
    reader, writer = FORK.Pipe(duplex=False)

    def limited() -> None:
        try:
            train(folder, limit=size // 2)
        except InputError as error:
            writer.send(str(error))

    process = session(limited)
    process.join()
    error = reader.recv() if reader.poll() else ""
    kept = sorted(path.name for path in folder.glob("states/flow/step_*")) == before
    last = session(train, folder)
    last.join()
    return {"error": error, "older_kept": kept, "same_weights_after": same_weights(folder, uninterrupted)}


def damage(folder: Path, times: int, draw: random.Random) -> dict[str, int]:
    """Corrupt a checkpoint this many times by a flipped bit and by truncation; how often loading detects it."""
    found, _ = checkpoints.newest(folder)
    assert found
    noticed = {"flips": 0, "cuts": 0}
    for kind in noticed:
        for _ in range(times):
            path = found.folder / draw.choice([checkpoints.STATE_FILE, checkpoints.MANIFEST_FILE])
            whole = path.read_bytes()
            changed = bytearray(whole)
            if kind == "flips":
                changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed if kind == "flips" else whole[: draw.randrange(len(whole))])
            try:
                checkpoints.read(found.folder)
            except Damaged:
                noticed[kind] += 1
            path.write_bytes(whole)
    return {"times": times, **noticed}


def render(found: dict[str, Any]) -> str:
    """The page, of those results that there are."""
    parts = training_table(found) if "kills" in found else []
    return "\n".join(["# Faults", "", *parts, *kill_table(found.get("operations")), *fuzz_table(found.get("fuzz"))])


def training_table(found: dict[str, Any]) -> list[str]:
    """The lines about faults during training."""
    kills, full, damaged = found["kills"], found["full_disk"], found["damage"]
    slowest = max(each["seconds"] for each in found["terminations"])
    codes = sorted({each["exit_code"] for each in found["terminations"]})
    return [
        "Written by `python benchmarks/faults.py`: flow and reverse model of `biflow_digits`, 1,200 steps each, a",
        "checkpoint every 20 steps, one thread.",
        "",
        "| fault | outcome |",
        "|---|---|",
        f"| {kills['kills']} kills (SIGKILL) at random moments, {kills['in_a_save']} of them during a checkpoint "
        "save; resumed each time | weights bit-identical to an uninterrupted run: "
        f"**{yes(kills['same_weights'])}** |",
        f"| SIGTERM, {len(found['terminations'])} times | saved and exited within {slowest:.1f} s, exit code "
        f"{', '.join(map(str, codes))} |",
        f"| full disk, simulated by a file-size limit that fails every save half way | older checkpoints intact: "
        f"**{yes(full['older_kept'])}**; resumed without the limit, weights bit-identical: "
        f"**{yes(full['same_weights_after'])}** |",
        f"| flipped bit in a checkpoint, {damaged['times']} times | detected {damaged['flips']} times |",
        f"| truncated checkpoint file, {damaged['times']} times | detected {damaged['cuts']} times |",
        "",
        "With a full disk, training warns and continues; a failed save at the end or on SIGTERM is an error:",
        "",
        f"> {full['error']}",
        "",
    ]


def kill_table(commands: dict[str, Any] | None) -> list[str]:
    """The lines about commands that benchmarks/kills.py killed."""
    if not commands:
        return []
    rows = []
    for name, each in commands.items():
        ended, compared = each["kills"] - len(each["faults"]), f"{each['compared']} of {each['files']}"
        rows.append(f"| `{name}` | {each['kills']} | {ended} | {compared} |")
    return [
        "## Kills at every file operation",
        "",
        "Written by `python benchmarks/kills.py`: each command is killed (SIGKILL) before every change that it",
        "makes to files and folders, and run again, with `--resume` where it has that. Files that hold times",
        "only have to be there; the contents of the others are compared with those of an undisturbed command.",
        "",
        "| command | kills | ended as an undisturbed one | files compared |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def fuzz_table(fuzz: dict[str, Any] | None) -> list[str]:
    """The lines about mutated files, which benchmarks/fuzz.py opened."""
    if not fuzz:
        return []
    rows, heads = fuzz["rows"], [key for key in fuzz["rows"][0] if key not in {"kind", "files"}]
    return [
        "## Damaged and invented files",
        "",
        f"Written by `python benchmarks/fuzz.py --seed {fuzz['seed']}`: each file is damaged at random (flipped bits,",
        "cuts, overwritten and inserted bytes, a pipe or device in its place) or edited (other values, types, shapes,",
        "names), and opened in a process with 2 GiB of memory and 20 seconds. *Accepted changed* counts damaged files",
        "that were accepted with other numbers than the original, where a checksum guards them; images have none.",
        "",
        f"| file | tried | {' | '.join(heads)} |",
        f"|---|{'---|' * (len(heads) + 1)}",
        *(f"| {row['kind']} | {row['files']} | {' | '.join(str(row[head]) for head in heads)} |" for row in rows),
        "",
    ]


def add_to_page(out: Path, found: dict[str, Any]) -> str:
    """Write these results over the same ones of the page in a folder, beside its others; returns the page."""
    path = out / "faults.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    page = render(known | found)
    write_text(path, json.dumps(known | found, indent=1) + "\n")
    write_text(out / "faults.md", page)
    return page


def yes(truth: bool) -> str:
    """A boolean for the table."""
    return "yes" if truth else "no"


def main() -> None:
    """Inject every fault and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path("runs/faults"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    draw, runs = random.Random(0), arguments.runs.resolve()
    session(train, runs / "uninterrupted").join()
    kills = kill_and_resume(runs / "killed", arguments.kills, draw)
    kills["same_weights"] = same_weights(runs / "killed", runs / "uninterrupted")
    found: dict[str, Any] = {
        "machine": describe_machine(torch.device("cpu")),
        "kills": kills,
        "terminations": [terminate(runs / f"terminated_{n}", draw) for n in range(5)],
        "full_disk": fill_disk(runs / "full", runs / "uninterrupted"),
        "damage": damage(runs / "uninterrupted" / "states" / "flow", arguments.flips, draw),
    }
    found["full_disk"]["error"] = found["full_disk"]["error"].replace(f"{runs}/", "")
    print(add_to_page(arguments.out, found))


if __name__ == "__main__":
    main()
