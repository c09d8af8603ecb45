"""Measures the time to load an official generator, and the memory to sample with it.

    python -m benchmarks.loading var_d16.pth    # with vae_ch160v4096z32.pth next to it

Each line gives seconds, processor seconds, and the resident memory of the process at the end of the step and at its
peak so far, in GB. Linux only. The results are in docs/measurements/speed.md.
"""

import argparse
import re
import time
from pathlib import Path

import jax

from refocus_jax import pretrained
from refocus_jax.runtime import memory


def resident() -> int:
    """The memory of this process in bytes."""
    return int(re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def report(what: str, step):
    begun = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(step())
    wall, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"| {what} | {wall:.1f} | {processor:.1f} | {resident() / 1e9:.2f} | {memory.peaks()['process'] / 1e9:.2f} |",
          flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    given = parser.parse_args()
    print("| what | s | processor s | resident GB | at its peak |\n| --- | --- | --- | --- | --- |", flush=True)
    generator = report("load", lambda: pretrained.load_generator(given.file))
    report("compile, sample one", lambda: generator.sample([0]))
    drawn = report("sample one", lambda: generator.sample([0], seed=1))
    report("compile, decode it", lambda: generator.images(drawn))


if __name__ == "__main__":
    main()
