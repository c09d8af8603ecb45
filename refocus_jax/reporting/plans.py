"""Formats a plan as text."""

from typing import Any

from refocus_jax.planning.planner import VAR_UTILIZATION
from refocus_jax.planning.targets import GIB


def lines(plan: dict[str, Any]) -> str:
    """Formats the content of plan.json."""
    chips = plan["chips"]
    out = [f"{plan['run']} on {plan['topology']}: {chips} chips as {plan['mesh']['data']} x {plan['mesh']['fsdp']} "
           f"(data x fsdp)", "parameters: " + ", ".join(
               f"{name} {count / 1e6:.1f} M" for name, count in plan["parameters"].items())]
    if "teacher_over_student" in plan:
        over = plan["teacher_over_student"]
        out.append(f"the teacher adds {over['flops']:.1%} FLOPs to a plain VAR step on tokens and "
                   f"{over['parameters']:.1%} parameters to the student")
    for name, program in plan["programs"].items():
        out += ["", _program(name, program)]
    return "\n".join(out)


def _gib(count: float | None) -> str:
    return "?" if count is None else f"{count / GIB:.2f} GiB"


def _program(name: str, program: dict[str, Any]) -> str:
    state, peak, capacity = (_gib(program[f"{what}_bytes_per_chip"]) for what in ("state", "peak", "capacity"))
    rows = [f"{name}, batch {program['batch']} ({program['batch_per_chip']:g} per chip): "
            + ("fits" if program["fits"] else f"does NOT fit, by {_gib(program['short_bytes_per_chip'])} per chip"),
            f"  memory per chip: state {state}, peak {peak}, capacity {capacity}"]
    if program["flops_per_step"] is not None:
        rows.append(f"  {program['flops_per_step'] / 1e12:.1f} TFLOP per step")
    if program["days"] is not None:
        rows.append(f"  {program['steps']} steps: {program['days']:.2f} days at {program['utilization']:.0%} of the "
                    f"chips' bfloat16 peak, which is assumed; {program['days_at_var_utilization']:.2f} days at the "
                    f"{VAR_UTILIZATION:.1%} that VAR's authors reached (d16 on A100s)")
    if program["collectives"] is not None:
        sent = ", ".join(f"{kind} {c['number']:g} x, {c['bytes'] / 1e6:.0f} MB"
                         for kind, c in sorted(program["collectives"].items()))
        rows.append(f"  collectives per chip and step: {sent or 'none'}")
    if program["largest_batch_per_chip"] is not None:
        rows.append(f"  largest batch per chip that fits: {program['largest_batch_per_chip']}")
    rows.append(f"  traced and compiled in {program['compile_seconds']:.0f} s")
    return "\n".join(rows + [f"  would help: {remedy}" for remedy in program["remedies"]])
