"""Makes plans for many configs and machines without having the machines.

    pip install -e '.[plan-tpu,plan-gpu]'
    python -m benchmarks.plan --directory=runs/plan                      # everything; hours on two cores
    python -m benchmarks.plan --directory=runs/plan --what=stage2 --configs d12 d16 --targets gpu:a100:1x8

Each plan is made by a process, `python -m refocus_jax.main --mode=plan`, which writes its plan.json into the directory.
Existing plans are not made again. Rows are printed as soon as they are ready. The tables are in
docs/measurements/plan.md, and those of M-VAR (`--what mvar mvar_sample`) in docs/mvar.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

TARGETS = ("tpu:v5e:4x4", "tpu:v5e:8x8", "tpu:v4:4x4x4", "tpu:v5p:4x4x4", "tpu:v6e:4x4", "gpu:a100:1x8", "gpu:h100:1x8",
           "gpu:a100:8x8")
CONFIGS = ("d12", "d16", "d20", "d24", "d30", "d36_512", "d16_1024")
ARCHITECTURES = ("d16", "d16:mvar", "d24", "d24:mvar")
# What is planned: configs, programs and settings. Stage 2 reads tokens from a cache.
TOKENS = "--config.data.token_examples=1000000"
WHAT = {
    "stage2": (CONFIGS, ("generator",), (TOKENS,)),
    "search": (("d16", "d24"), ("generator",), (TOKENS, "--config.plan.search_batch=True")),
    "stage1": (("d16", "d16:k4"), ("tokenizer",), ()),
    "sample": (("d16",), ("sample",), ()),
    "mvar": (ARCHITECTURES, ("generator",), (TOKENS,)),
    "mvar_sample": (ARCHITECTURES, ("sample",), ("--config.sample.batch_size=64",)),
}
ALL = tuple(dict.fromkeys(config for configs, _, _ in WHAT.values() for config in configs))


def plan(workdir: Path, config: str, target: str, programs: tuple[str, ...], settings: tuple[str, ...]) -> dict | None:
    """Reads the plan.json of one plan and makes it if it does not exist; None if that failed (see the log there)."""
    if not (workdir / "plan.json").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "refocus_jax.main", f"--config={config}",
                   f"--workdir={workdir}", "--mode=plan", f"--config.plan.topology={target}",
                   f"--config.plan.programs={programs!r}", *settings]
        with open(workdir / "log", "w") as log:
            subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    path = workdir / "plan.json"
    return json.loads(path.read_text()) if path.exists() else None


def row(config: str, target: str, found: dict | None) -> str:
    if found is None:
        return f"| {config} | {target} | no plan |"
    (program,) = found["programs"].values()
    peak, capacity, short = (program[f"{name}_bytes_per_chip"] for name in ("peak", "capacity", "short"))
    sent = sum(kind["bytes"] for kind in (program["collectives"] or {}).values())
    cells = [config, target, f"{found['mesh']['data']}x{found['mesh']['fsdp']}", f"{program['batch_per_chip']:g}",
             f"{program['state_bytes_per_chip'] / 2**30:.2f}", "-" if peak is None else f"{peak / 2**30:.2f}",
             f"{capacity / 2**30:.2f}", "yes" if program["fits"] else f"no, by {short / 2**30:.2f}",
             "-" if program["collectives"] is None else f"{sent / 2**30:.2f}",
             f"{program['flops_per_step'] / 1e12:.1f}",
             *("-" if program[days] is None else f"{program[days]:.2f}"
               for days in ("days", "days_at_var_utilization")),
             f"{program['compile_seconds']:.0f}"]
    if program["largest_batch_per_chip"] is not None:
        cells.append(str(program["largest_batch_per_chip"]))
    return f"| {' | '.join(cells)} |"


def teacher(directory: Path, configs: list[str]) -> None:
    """Prints what the teacher adds to a plain VAR step, which does not depend on the machine."""
    print("\nteacher\n\n| config | M | FLOPs | parameters |\n| --- | --- | --- | --- |", flush=True)
    for config in configs:
        for blocks in (1, 2):
            found = plan(directory / "teacher" / f"{config}_{blocks}", config, "gpu:a100:1x8", (),
                         (TOKENS, f"--config.generator.teacher.num_alias_blocks={blocks}"))
            over = found["teacher_over_student"]
            print(f"| {config} | {blocks} | {over['flops']:.1%} | {over['parameters']:.1%} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--what", nargs="+", choices=[*WHAT, "teacher"], default=[*WHAT, "teacher"])
    parser.add_argument("--configs", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    given = parser.parse_args()
    for what in given.what:
        if what == "teacher":
            teacher(given.directory, [config for config in CONFIGS if config in given.configs])
            continue
        print(f"\n{what}\n\n| config | machine | mesh | batch per chip | state GiB | peak GiB | capacity GiB | fits | "
              "collectives GiB per step | TFLOP per step | days at 40% | days at 21.7% | compile s |"
              + (" largest batch per chip |" if what == "search" else ""), flush=True)
        print("| --- " * (14 if what == "search" else 13) + "|", flush=True)
        configs, programs, settings = WHAT[what]
        for config in configs:
            for target in given.targets:
                if config in given.configs:
                    workdir = given.directory / what / f"{config}_{target}".replace(":", "_")
                    print(row(config, target, plan(workdir, config, target, programs, settings)), flush=True)


if __name__ == "__main__":
    main()
