"""A plan as tables, each with a sentence below it."""

from typing import Any

from rich.table import Table


def tables_of(plan: dict[str, Any]) -> list[Table | str]:
    """The tables of a plan (see `plan_of` in `command.py`), and the sentences below them."""
    shown: list[Table | str] = []
    for make in (parameters, memory, checkpointing, cost):
        table, sentence = make(plan)
        for column in table.columns[1:]:
            column.justify = "right"
        shown += [table, f"{sentence}\n"]
    return shown


def parameters(plan: dict[str, Any]) -> tuple[Table, str]:
    table = Table("part", "trained", "averaged", title="parameters", title_justify="left")
    for name, number in (plan["parameters"] | {"all": sum(plan["parameters"].values())}).items():
        millions = f"{number / 1e6:,.2f}M"
        table.add_row(name, millions, millions if plan["ema"] else "–")
    if not plan["assumed_latents"]:
        return table, "Those that both halves of the patcher use are in its first half."
    shape = " x ".join(map(str, plan["assumed_latents"]))
    return table, f"The VAE is not on this machine; assumed are latents of {shape} (--latent_channels, --downscale)."


def memory(plan: dict[str, Any]) -> tuple[Table, str]:
    table = Table("kind", "GB", title="memory of a device", title_justify="left")
    for kind, count in (plan["memory"] | {"all": sum(plan["memory"].values())}).items():
        table.add_row(kind, gigabytes(count))
    return table, (
        f"{plan['strategy']} over {plan['devices']}, {plan['precision']}, activation_checkpointing "
        f"{plan['activation_checkpointing']}, {plan['batch_size']} rows of {plan['sequence_length']} positions on each "
        "device. Buffers of CUDA and NCCL are not counted."
    )


def checkpointing(plan: dict[str, Any]) -> tuple[Table, str]:
    limit, batch_size = plan["memory_limit"], plan["batch_size"]
    table = Table("setting", f"GB at batch_size {batch_size}", title="activation checkpointing", title_justify="left")
    if limit is not None:
        table.add_column(f"largest batch_size in {limit / 1e9:g} GB")
    for kind, one in plan["by_activation_checkpointing"].items():
        largest = [] if limit is None else [str(one["largest_batch_size"])]
        table.add_row(kind, gigabytes(one["memory"]), *largest)
    if limit is None:
        return table, "--memory_gb shows the largest batch_size."
    fitting = [kind for kind, one in plan["by_activation_checkpointing"].items() if one["memory"] <= limit]
    if not fitting:
        return table, f"batch_size {batch_size} does not fit; use a smaller one, more devices, or fsdp2."
    needs = "no activation checkpointing" if fitting[0] == "none" else f"activation_checkpointing {fitting[0]}"
    left = gigabytes(limit - plan["by_activation_checkpointing"][fitting[0]]["memory"])
    return table, f"batch_size {batch_size} needs {needs}; {left} GB remain for what is not counted."


def cost(plan: dict[str, Any]) -> tuple[Table, str]:
    table = Table("what", "number", title="operations and time", title_justify="left")
    rows = {
        "tokens and patches per step": f"{plan['tokens_per_step']:,}",
        "FLOPs per step": f"{plan['flops_per_step']:.3g}",
        "steps": f"{plan['steps']:,}",
        "tokens and patches of the run": f"{plan['tokens']:.4g}",
        "FLOPs of the run": f"{plan['flops']:.3g}",
        "6 N D": f"{plan['six_n_d']:.3g}",
        f"days at {plan['mfu']:g} of {plan['peak_tflops']:g} TFLOP/s": f"{plan['days']:.3g}",
    }
    for what, number in rows.items():
        table.add_row(what, number)
    return table, f"{plan['image_share']:.0%} of the positions are in documents with images. There is no padding."


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3f}"
