"""The tables of a benchmark, saved as JSON and as Markdown."""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

from lit_transfusion.hardware import cpu_name


@dataclass
class Table:
    """Rows of cells with a title. Notes describe what is measured and what was asserted before."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", *[f"{note}\n" for note in self.notes]]
        for cells in (self.columns, ["---"] * len(self.columns), *self.rows):
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    """What the numbers depend on, apart from the code."""
    values = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }
    if torch.cuda.is_available():
        values["gpu"] = torch.cuda.get_device_name()
    return values


def save(path: Path, name: str, command: str, about: str, header: dict[str, str], tables: list[Table]) -> None:
    """Add the results of a benchmark to `path` (.json), and write all of its results to the .md file beside it."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {
        "about": about,
        "command": command,
        "environment": header,
        "tables": [asdict(table) for table in tables],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    parts = ["# Benchmarks\n", "Written by `python -m benchmarks` (see `benchmarks/README.md`); times in ms are",
             "median [minimum].\n"]  # fmt: skip
    for name, result in results.items():
        parts += [f"## {name}\n", f"{result['about']}\n", f"`{result['command']}`: "]
        parts += [", ".join(f"{key} {value}" for key, value in result["environment"].items()) + "\n"]
        parts += [Table(**table).markdown() for table in result["tables"]]
    path.with_suffix(".md").write_text("\n".join(parts))
