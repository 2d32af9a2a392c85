"""The command: python -m benchmarks [NAME ...] [--quick] [--output FILE.json]"""

import argparse
import importlib
import shlex
import sys
import time
from pathlib import Path

import torch

from benchmarks.report import environment, save

NAMES = ["attention", "mask", "step", "variants", "packing", "loss", "recompile", "sample", "data", "peers", "gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure speed and memory on this machine."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to test that it runs")
    parser.add_argument(
        "--threads", type=int, default=1, help="number of CPU threads; with more than one, times vary more"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="save the results in this file and in a .md file beside it"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {unknown.pop()!r}; known: {', '.join(NAMES)}")
    if arguments.output and arguments.output.suffix != ".json":
        parser.error(f"--output {arguments.output} must end in .json")
    torch.set_num_threads(arguments.threads)
    header = environment()
    print("\n".join(f"{name:<8} {value}" for name, value in header.items()), "\n")
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        reason = cannot_run(name)
        if reason:
            print(f"{name}: left out ({reason})\n")
            continue
        print(f"## {name}\n\n{module.__doc__}", flush=True)
        start = time.perf_counter()
        tables = module.run(arguments.quick)
        print("\n".join(table.markdown() for table in tables))
        print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)
        if arguments.output:
            options = [*(["--quick"] if arguments.quick else []), "--threads", str(arguments.threads)]
            command = shlex.join(["python", "-m", "benchmarks", name, *options])
            save(arguments.output, name, command, module.__doc__, header, tables)


def cannot_run(name: str) -> str | None:
    """The reason why a benchmark cannot run here, or None."""
    if name == "gpu" and not torch.cuda.is_available():
        return "no CUDA device"
    if name == "peers":
        missing = [
            package for package in ("transfusion_pytorch", "transformers") if not importlib.util.find_spec(package)
        ]
        if missing:
            return f"{' and '.join(missing)} not installed; use pip install -e '.[benchmarks]'"
    return None


if __name__ == "__main__":
    sys.exit(main())
