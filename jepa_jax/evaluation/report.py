"""What evaluation leaves behind: a table to read, `eval/TASK.json` to compare."""

import json

from etils import epath

from jepa_jax.places import write_whole

# Key of a metric -> head of its column; a column that no metric has is not shown.
COLUMNS = {
    "value": "model",
    "paper_base": "paper BASE",
    "paper_sft": "paper SFT",
    "chance": "chance",
    "untrained": "untrained",
    "shuffled": "shuffled",
}


def shown(name: str, value: float | None) -> str:
    """A figure as it is printed: a share as a percentage; CIDEr as papers do, times 100."""
    if value is None:
        return "-"
    name = name.rpartition("/")[2]  # the split before it may be called anything
    if "rank" in name:
        return f"{value:.1f}"
    if "cosine" in name:
        return f"{value:.3f}"
    if "times" in name:
        return f"{value:.2f}"
    return f"{100 * value:.1f}" + ("" if "cider" in name else "%")


def format_table(results: dict[str, dict[str, dict]]) -> str:
    """The closing table, one row a metric: {task: {metric: {"value", "chance", .., "n"}}}."""
    found = {key for metrics in results.values() for metric in metrics.values() for key in metric}
    columns = {key: head for key, head in COLUMNS.items() if key in found}
    rows = [("task", "metric", *columns.values(), "n")]
    for task, metrics in results.items():
        for name, metric in metrics.items():
            cells = [shown(name, metric.get(key)) for key in columns]
            rows.append((task, name, *cells, str(metric["n"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        return "  ".join(left + right)

    return "\n".join([line(rows[0]), "-" * len(line(rows[0])), *map(line, rows[1:])])


def write_json(workdir: epath.Path, name: str, content: dict) -> epath.Path:
    """Write `eval/NAME.json` in a folder; returns its path."""
    file = workdir / "eval" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=2) + "\n")
    return file
