"""Trains and measures rows and seeds as processes, several at a time, each on a core of its own."""

import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from benchmarks.study.recipes import Recipe, Study
from benchmarks.study.rows import Row
from refocus_jax.runtime.files import read_json, write_json

SECONDS = "processor_seconds.json"


def run(study: Study, rows: Mapping[str, Row], seeds: Iterable[int], processes: int) -> None:
    """Trains and measures what is not finished; a row whose tokenizer is not trained waits for it.

    Raises:
      RuntimeError: Some have failed; the others are finished.
    """
    trained: dict[tuple[str, int], Future] = {}
    jobs: dict[str, Future] = {}
    with _pool(processes) as pool:
        for name, row in rows.items():
            missing = [seed for seed in seeds if not study.result(name, seed).exists()]
            # A pool starts its jobs in their order, so a tokenizer has always begun before a row waits for it.
            for seed in missing:
                if (row.tokenizer, seed) not in trained:
                    trained[row.tokenizer, seed] = pool.submit(
                        train, study.tokenizer(row.tokenizer, seed), "tokenizer",
                        study.tokenizer_workdir(row.tokenizer, seed))
            for seed in missing:
                jobs[f"{name}-{seed}"] = pool.submit(_finish, study, name, row, seed, trained[row.tokenizer, seed])
    if failed := {name: job.exception() for name, job in jobs.items() if job.exception()}:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in failed.items())
                           + ". Correct the cause, and run the same command again")


def _pool(processes: int) -> ThreadPoolExecutor:
    """Makes a pool of threads, each bound to a core, as is every process that it starts."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if processes == 1 or not cores:
        return ThreadPoolExecutor(processes)
    if processes > len(cores):
        raise ValueError(f"--processes is {processes}, and this process may use {len(cores)} cores; give at most that")
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)
    return ThreadPoolExecutor(processes, initializer=lambda: os.sched_setaffinity(0, {free.get()}))


def _finish(study: Study, name: str, row: Row, seed: int, tokenizer: Future) -> None:
    tokenizer.result()
    link_references(study, study.workdir(name, seed))
    train(study.generator(row, seed), "generator", study.workdir(name, seed))
    measure(study, name, seed)
    print(f"finished: {name}, seed {seed}", flush=True)


def train(recipe: Recipe, mode: str, workdir: Path) -> None:
    """Trains a stage; one that is finished ends at once."""
    call([sys.executable, "-m", "refocus_jax.main", f"--workdir={workdir}", f"--mode={mode}", *recipe.flags()], mode,
         workdir)


def link_references(study: Study, workdir: Path) -> None:
    """Links features that were measured for another row to where the modes look for them."""
    own = workdir / "evaluation"
    own.mkdir(parents=True, exist_ok=True)
    for folder in study.references.glob("features_*"):
        if not (own / folder.name).exists():
            (own / folder.name).symlink_to(folder.resolve())


def measure(study: Study, row: str, seed: int) -> None:
    call([sys.executable, "-m", "benchmarks.study", "measure", f"--directory={study.directory}", f"--row={row}",
          f"--seed={seed}"], "measure", study.workdir(row, seed))


def call(command: list[str], name: str, workdir: Path) -> None:
    """Runs a command, appends what it prints to WORKDIR/NAME.log, and adds up its processor seconds in WORKDIR.

    Raises:
      RuntimeError: It has failed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / f"{name}.log", "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    before = read_json(workdir / SECONDS) or {}
    seconds = before.get(name, 0.0) + used.ru_utime + used.ru_stime
    write_json(workdir / SECONDS, {**before, name: round(seconds, 1)})
    if process.returncode:
        raise RuntimeError(f"{name} ended with code {process.returncode}; see {log.name}")
