"""What an evaluation says, for people."""

from collections.abc import Mapping


def table(title: str, evaluation: Mapping[str, float]) -> str:
    """Numbers of one evaluation.json as text: one row per metric, one column per scale.

    Args:
      evaluation: perhaps `step`; names like `validation/cross_entropy/scale_2`, `.../all` or without a last part.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in evaluation.items():
        if name == "step":
            continue
        name = name.removeprefix("validation/")
        metric, _, column = name.rpartition("/")
        if not column.startswith("scale_") and column != "all":
            metric, column = name, "all"
        rows.setdefault(metric, {})[column] = value
    columns = ["all"] + sorted({c for row in rows.values() for c in row} - {"all"}, key=lambda c: int(c.split("_")[1]))
    width = max(map(len, rows))
    heading = f"{title}, step {evaluation['step']}" if "step" in evaluation else title
    lines = [f"{heading:{width}s}" + "".join(f"{column.replace('_', ' '):>10s}" for column in columns)]
    for metric, row in rows.items():
        cells = "".join(f"{row[c]:10.4g}" if c in row else " " * 10 for c in columns)
        lines.append(f"{metric:{width}s}{cells}".rstrip())
    return "\n".join(lines)
