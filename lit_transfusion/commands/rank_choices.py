"""`rank_choices`: measure how often a checkpoint finds the right ending of a text the likeliest, with lm-eval tasks."""

from rich.console import Console
from rich.table import Table

from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.progress import reporting


def rank_choices(
    ckpt: str,
    task: list[str] | None = None,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> None:
    """Measure the accuracy of choosing the likeliest of several text endings. Pictures are not used.

    Args:
        ckpt: Checkpoint of a run, or a folder that `export` wrote.
        task: A task of lm-eval, of `include_path`, or our own `shape_language`, which needs no network. May be given
            several times; null uses the commonsense tasks of Llama's suite (paper, 4.1), with data from the hub.
        include_path: Folder with YAML files of more tasks.
        limit: The most questions of each task; null for all.
        num_fewshot: Number of example questions with answers before each question; null uses the task's number, or 0.
        batch_size: Number of texts to process together.
        device: cpu, cuda, cuda:1, …; null uses a GPU if there is one.
    """
    # Here, since these imports take seconds, and --help is quick.
    from lit_transfusion.evaluation.metric import Unavailable
    from lit_transfusion.evaluation.ranked_classification import LLAMA_SUITE, RankedClassification
    from lit_transfusion.generation.open_pipeline import open_pipeline

    check_at_least("batch_size", batch_size)
    metric = RankedClassification(tuple(task or LLAMA_SUITE), include_path, limit, num_fewshot)
    pipeline = open_pipeline(ckpt, device)
    try:
        with reporting() as on_progress:
            on_progress("reading", 0, None)
            accuracies = metric.accuracies(pipeline, batch_size, on_progress)
    except Unavailable as error:
        raise InputError(str(error)) from None
    table = Table("task", "accuracy")
    for name, accuracy in accuracies.items():
        table.add_row(name, f"{100 * accuracy:.1f} %")
    table.add_section()
    table.add_row("mean", f"{100 * sum(accuracies.values()) / len(accuracies):.1f} %")
    Console().print(table)
