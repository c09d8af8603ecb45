"""Kills a run repeatedly and restarts it, and compares its final files with those of a run that was not killed.

    python -m benchmarks.kills --config=tiny:smoke --kills=30 --directory=runs/kills
    python -m benchmarks.kills --kills=10 --directory=runs/kills --bucket=gs://BUCKET/kills  # killed in a bucket

Every second kill comes during a save. The others come at a random moment after the start, which may be during imports,
compilation, evaluation or the change of stages. If a run finishes before it has been killed often enough, another one
begins. All runs use the same command, `refocus_jax.main`. These are compared bit for bit: all arrays of the last
checkpoints, their records, metrics.jsonl and TensorBoard's scalars (except times and memory), the token cache,
evaluation.json and every picture.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refocus_jax.reporting.runs import OF_THE_MACHINE, STAGES
from refocus_jax.runtime import bucket


def start(config: str, workdir: Path | str, cache: Path, log) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "refocus_jax.main", f"--config={config}", f"--workdir={workdir}"],
                            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}, stdout=log, stderr=log)


def objects(url: str) -> dict[str, Any]:
    """Lists the objects in a place of a bucket, by their names there."""
    found, prefix = bucket.objects(url)
    return {blob.name.removeprefix(prefix): blob for blob in found.list_blobs(prefix=prefix)}


def unfinished(workdir: Path | str) -> set[str]:
    """Lists checkpoints that are being written, or that a kill has left unfinished."""
    if not bucket.is_url(workdir):
        return {str(path) for path in Path(workdir).glob("*/checkpoints/*.orbax-checkpoint-tmp*")}
    names = objects(str(workdir)).keys()
    begun = {match[0] for match in map(re.compile(r"\w+/checkpoints/\d+/").match, names) if match}
    return {checkpoint for checkpoint in begun if f"{checkpoint}commit_success.txt" not in names}


def fetch(url: str, folder: Path) -> Path:
    """Copies what is in a place of a bucket into a folder, and returns the folder."""
    for name, blob in objects(url).items():
        if not name.endswith("/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(folder / name)
    return folder


def kill_until_done(config: str, workdir: Path | str, cache: Path, kills: int, seed: int, longest: float) -> list[str]:
    """Runs the command until it ends by itself, killing it up to `kills` times; returns when each kill came."""
    rng, killed = random.Random(seed), []
    with open(cache.with_name(f"{Path(workdir).name}.log"), "w") as log:
        while True:
            left = unfinished(workdir)
            process, began = start(config, workdir, cache, log), time.monotonic()
            if len(killed) < kills:
                wait_for_save, moment = len(killed) % 2 == 0, rng.uniform(0, longest)
                while process.poll() is None:
                    seconds, in_save = time.monotonic() - began, unfinished(workdir) - left
                    if in_save if wait_for_save else seconds > moment:
                        if in_save:
                            time.sleep(rng.uniform(0, 0.05))
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        killed.append(f"{seconds:.1f} s" + (" in a save" if in_save else ""))
                        break
                    time.sleep(0.002)
                else:
                    if process.returncode == 0:
                        return killed
                if process.returncode == -signal.SIGKILL:
                    continue
            if process.wait() != 0:
                raise RuntimeError(f"the command failed; see {log.name}")
            return killed


def _arrays(path: Path):
    """Reads a checkpoint as a tree of numpy arrays, whatever types they had."""
    handler = ocp.PyTreeCheckpointHandler()
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))


def contents(workdir: Path) -> dict[str, object]:
    """Reads everything that must be the same, by name; arrays as bytes."""
    found: dict[str, object] = {}
    for stage in STAGES:
        step = max(int(path.name) for path in (workdir / stage / "checkpoints").iterdir() if path.name.isdecimal())
        checkpoint = workdir / stage / "checkpoints" / str(step)
        arrays = _arrays((checkpoint / "state").absolute())
        for path, array in traverse_util.flatten_dict(arrays).items():
            found[f"{stage} step {step} {'/'.join(path)}"] = np.asarray(array).tobytes()
        found[f"{stage} record"] = (checkpoint / "record" / "record.json").read_text()
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        found[f"{stage} metrics"] = [{name: value for name, value in line.items()
                                      if not name.startswith(OF_THE_MACHINE)} for line in lines]
        shown = EventAccumulator(str(workdir / stage), {"scalars": 0}).Reload()
        for name in shown.Tags()["scalars"]:
            if not name.startswith(OF_THE_MACHINE):
                found[f"{stage} TensorBoard {name}"] = [(e.step, repr(e.value)) for e in shown.Scalars(name)]
        found[f"{stage} evaluation"] = (workdir / stage / "evaluation.json").read_text()
        for path in (workdir / stage / "pictures").iterdir():
            found[f"{stage} {path.name}"] = path.read_bytes()
    for path in workdir.glob("tokens_*/*"):
        found[f"{path.parent.name} {path.name}"] = path.read_bytes()
    return found


def differences(one: Path, other: Path) -> list[str]:
    a, b = contents(one), contents(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny:smoke")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--bucket", help="gs://BUCKET/FOLDER, a new place for the runs that are killed")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds after the start at which a kill may come")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    whole, cache = given.directory / "whole", given.directory / "cache"
    kill_until_done(given.config, whole, cache, 0, 0, 0.0)
    moments, differing = [], []
    while len(moments) < given.kills:
        killed = given.directory / f"killed_{len(moments)}"
        workdir = f"{given.bucket}/{killed.name}" if given.bucket else killed
        found = kill_until_done(given.config, workdir, cache, given.kills - len(moments), given.seed + len(moments),
                                given.longest)
        if not found:
            parser.error(f"a run finished before it was killed; give a --longest of less than {given.longest}")
        moments += found
        if given.bucket:
            fetch(workdir, killed)
        differing += differences(whole, killed)
        print(f"{len(found)} kills: {', '.join(found)}; {len(contents(whole))} items compared, {len(differing)} "
              f"differ: {differing}", flush=True)
    print(f"{len(moments)} kills, {sum('in a save' in moment for moment in moments)} of them in a save")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
