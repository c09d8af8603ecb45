"""Counts what a compiled program sends between devices, from the program's text."""

import collections
import re

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
         "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d+(?:[a-z]\w*)?|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_CONSTANT = re.compile(r"s32\[\][^=]* constant\((\d+)\)")


def count(text: str) -> dict[str, dict[str, float]]:
    """Counts the collectives of one run of a program on one device; those in loops count as often as the loop runs.

    Args:
      text: The text of a compiled program, `compiled.as_text()`.

    Returns:
      By kind, the `number` of collectives and the `bytes` of their results.
    """
    computations, entry = _computations(text)
    found: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"number": 0, "bytes": 0})
    _walk(computations, entry, 1, found)
    return dict(found)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Splits a program's text; returns the lines of every computation by name, and the name of the entry point."""
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    entry = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        else:
            current.append(line)
    return computations, entry


def _walk(computations, name: str, times: int, found) -> None:
    for line in computations.get(name, ()):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        result, operation = instruction.groups()
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            # On TPUs, a reduce-scatter is a computation of this name with an all-reduce of which devices keep parts.
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
            found[kind]["number"] += times
            found[kind]["bytes"] += times * _bytes(result, started=operation.endswith("-start"))
        repeated = times * (_trip_count(computations, line) if operation == "while" else 1)
        called = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            called += [branch.strip().removeprefix("%") for branch in branches[1].split(",")]
        for inner in called:
            _walk(computations, inner, repeated, found)


def _bytes(result: str, started: bool) -> int:
    """Returns the size of a collective's result; the type of a start instruction lists operands, then results."""
    sizes = [_BITS.get(kind, 32) * int(np.prod([int(n) for n in shape.split(",") if n])) // 8
             for kind, shape in _ARRAY.findall(result)]
    return sum(sizes[len(sizes) // 2:] if started and len(sizes) > 1 else sizes)


def _trip_count(computations, line: str) -> int:
    """Returns how often a loop runs: GPU compilers say it; on TPUs, its condition compares with only this number."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    assert condition is not None  # every loop has one
    limits = [int(n) for text in computations.get(condition[1], ()) for n in _CONSTANT.findall(text)]
    return max(limits, default=1)
