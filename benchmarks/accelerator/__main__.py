"""The command: see `benchmarks.accelerator`."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

import benchmarks.accelerator
from benchmarks.accelerator import checks, speed
from benchmarks.accelerator.networks import SMALL, Networks
from benchmarks.accelerator.programs import Bench, empty_cache
from benchmarks.accelerator.report import Report, machine

PARTS = {"float32": checks.float32, "sample": speed.sample, "train": speed.train,
         "attention": checks.attention_scales, "bfloat16": checks.bfloat16, "stage1": speed.stage1}


def main(arguments: Sequence[str] | None = None) -> Report:
    parser = argparse.ArgumentParser("python -m benchmarks.accelerator", description=benchmarks.accelerator.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/accelerator"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"what is measured; default all: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=480, help="after so many, no further measurement begins")
    parser.add_argument("--small", action=argparse.BooleanOptionalAction, default=None,
                        help="the sizes of a test; default on a CPU")
    given = parser.parse_args(arguments)
    device = jax.devices()[0]
    small = device.platform == "cpu" if given.small is None else given.small
    if small:
        jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
    networks = SMALL if small else Networks()
    report = Report(given.output, given.seconds, machine(device, networks.dtype, small))
    with empty_cache() as cache:
        bench = Bench(device, networks, cache, *(((2, 1), (2, 2), 2) if small else ()))
        for name in given.parts:
            report.run(name, functools.partial(PARTS[name], bench))
    return report


if __name__ == "__main__":
    if failed := main().failed_checks:
        sys.exit(f"failed: {'; '.join(failed)}")
