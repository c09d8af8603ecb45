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


def resident() -> tuple[float, float]:
    """Resident memory now and at its peak, in GB."""
    status = Path("/proc/self/status").read_text()
    now, peak = (int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) * 1024 / 1e9 for name in ("VmRSS", "VmHWM"))
    return now, peak


def report(what: str, step):
    begun = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(step())
    wall, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"| {what} | {wall:.1f} | {processor:.1f} | " + " | ".join(f"{size:.2f}" for size in resident()) + " |",
          flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    given = parser.parse_args()
    print("| what | s | processor s | resident GB | at its peak |\n| --- | --- | --- | --- | --- |", flush=True)
    loaded = {}
    report("load", lambda: loaded.update(it=pretrained.load_generator(given.file)))
    generator = loaded["it"]
    report("compile, sample one", lambda: generator.sample([0]))
    drawn = report("sample one", lambda: generator.sample([0], seed=1))
    report("compile, decode it", lambda: generator.images(drawn))


if __name__ == "__main__":
    main()
