"""python -m benchmarks [NAME ...] [--quick] [--output FILE.json]"""

import argparse
import importlib
import shlex
import sys
import time
from pathlib import Path

import torch

from benchmarks.report import environment, keep

NAMES = ["attention", "mask", "step", "packing", "loss", "recompile", "sample", "data", "peers", "gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory, measured here and now."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; none means all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; with more than one, noise is large")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="keep the results there, and as .md beside it")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {unknown.pop()!r}; known: {', '.join(NAMES)}")
    if arguments.output and arguments.output.suffix != ".json":
        parser.error(f"--output {arguments.output} does not end in .json")
    torch.set_num_threads(arguments.threads)
    header = environment()
    print("\n".join(f"{name:<8} {value}" for name, value in header.items()), "\n")
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        reason = cannot_run(name)
        if reason:
            print(f"{name}: left out, {reason}\n")
            continue
        print(f"## {name}\n\n{module.__doc__}", flush=True)
        began = time.perf_counter()
        tables = module.run(arguments.quick)
        print("\n".join(table.markdown() for table in tables))
        print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)
        if arguments.output:
            options = [*(["--quick"] if arguments.quick else []), "--threads", str(arguments.threads)]
            command = shlex.join(["python", "-m", "benchmarks", name, *options])
            keep(arguments.output, name, command, module.__doc__, header, tables)


def cannot_run(name: str) -> str | None:
    """Why a benchmark must be left out here, or None."""
    if name == "gpu" and not torch.cuda.is_available():
        return "there is no CUDA device"
    if name == "peers":
        missing = [
            package for package in ("transfusion_pytorch", "transformers") if not importlib.util.find_spec(package)
        ]
        if missing:
            return f"{' and '.join(missing)} not installed; pip install -e '.[benchmarks]'"
    return None


if __name__ == "__main__":
    sys.exit(main())
