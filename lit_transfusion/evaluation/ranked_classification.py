"""Metric of the accuracy on lm-eval's multiple-choice text tasks, such as the commonsense tasks of the Llama papers."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.progress import OnProgress, silent

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from lit_transfusion.generation.pipeline import Pipeline

TASKS = Path(__file__).parents[1] / "shapes" / "tasks"  # tasks of this package
LLAMA_SUITE = ("hellaswag", "piqa", "social_iqa", "winogrande", "arc_easy", "arc_challenge", "boolq")


class RankedClassification(Metric):
    """Accuracy of choosing the right one of several text endings by likelihood, with lm-eval. Pictures are not used.

    There is a column for each task, and `ranked_classification` is their mean. If a task reports `acc_norm`, which
    divides log-likelihoods by the letters of the choice, it is used, else `acc`. Llama does the same (Touvron et al.,
    2023). The paper reports the mean over Llama's suite (4.1): hellaswag, piqa, social_iqa, winogrande, arc_easy,
    arc_challenge, boolq. Their data comes from the Hugging Face hub, or from its cache on this machine. Our own task
    `shape_language` needs no network; it tests grammar in the words of the Shapes captions, and chance is 1/2.

    Args:
        tasks: Names of lm-eval's tasks, of those in `include_path`, or `shape_language`.
        include_path: Folder with YAML files of more tasks.
        limit: The most questions of each task: the first; null for all.
        num_fewshot: Number of example questions with answers before each question; null uses the task's number, or 0.
    """

    columns: ClassVar[dict[str, str]] = {"ranked_classification": "more"}  # plus one for each task
    samples: ClassVar[bool] = False

    def __init__(
        self,
        tasks: tuple[str, ...] = ("shape_language",),
        include_path: str | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
    ) -> None:
        if not tasks or len(set(tasks)) < len(tasks):
            raise InputError(
                f"RankedClassification.tasks {list(tasks)} is invalid: name at least one task, and each only once"
            )
        if include_path is not None and not Path(include_path).is_dir():
            raise InputError(f"RankedClassification.include_path {include_path}: folder not found; check the path")
        self.tasks = list(tasks)
        self.include_path = include_path
        self.limit = limit
        self.num_fewshot = num_fewshot
        self.columns = dict.fromkeys(["ranked_classification", *self.tasks], "more")

    def __call__(self, subject: Subject) -> dict[str, float]:
        found = self.accuracies(subject.pipeline, subject.batch_size, subject.on_progress)
        return {"ranked_classification": sum(found.values()) / len(found), **found}

    def accuracies(
        self, pipeline: "Pipeline", batch_size: int = 64, on_progress: OnProgress = silent
    ) -> dict[str, float]:
        """The accuracy of each task, in [0, 1]. No examples are needed, since the tasks contain their texts."""
        try:
            import lm_eval
        except ImportError:
            raise Unavailable('lm-eval is not installed: pip install -e ".[lm-eval]"') from None
        from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about options of tasks
        loaded = self._load()
        for task in loaded["tasks"].values():
            if self.num_fewshot is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
            task.set_fewshot_seed(seed=1234)  # lm-eval's own default
        # Not simple_evaluate, which reseeds the random numbers of the whole process and lists its packages.
        model = TransfusionLM(pipeline, batch_size, on_progress=on_progress)
        results = lm_eval.evaluate(model, loaded, limit=self.limit, bootstrap_iters=0, log_samples=False)["results"]
        return {name: accuracy(name, results[name]) for name in self.tasks}

    def _load(self) -> dict[str, dict[str, "Task"]]:
        """Load the tasks with their data: from this machine if all data is on it, else from the hub."""
        from lm_eval.tasks import TaskManager

        folders = [str(TASKS), *([self.include_path] if self.include_path else [])]
        manager = TaskManager(include_path=folders, include_defaults=False)
        if not set(self.tasks) <= set(manager.all_tasks):  # reading lm-eval's own tasks takes seconds
            manager = TaskManager(include_path=folders)
        unknown = [name for name in self.tasks if name not in manager.all_tasks]
        if unknown:
            raise InputError(
                f"RankedClassification.tasks: neither lm-eval nor include_path has a task {unknown[0]!r}; check the "
                "name"
            )
        groups = [name for name in self.tasks if name not in manager.all_subtasks]
        if groups:
            raise InputError(
                f"RankedClassification.tasks: {groups[0]!r} is a group of tasks; name the tasks of the group instead"
            )
        try:
            with offline():
                return manager.load(self.tasks)
        except Exception as error:  # any error in the YAML or the data
            if not is_hub_reachable():
                raise self._loading_error(error) from error
        try:
            return manager.load(self.tasks)
        except Exception as error:
            raise self._loading_error(error) from error

    def _loading_error(self, error: Exception) -> Exception:
        tasks = ", ".join(self.tasks)
        if isinstance(error, ConnectionError):
            return Unavailable(
                f"RankedClassification.tasks {tasks}: some data is not on this machine, and the hub is not reachable; "
                "connect once to download it"
            )
        reason = (str(error).strip().splitlines() or [""])[0]
        return InputError(
            f"RankedClassification.tasks {tasks}: lm-eval cannot load them ({type(error).__name__}: {reason}); check "
            "the YAML and the data"
        )


def accuracy(name: str, results: dict[str, float]) -> float:
    for measure in ("acc_norm,none", "acc,none"):
        if measure in results:
            return float(results[measure])
    raise InputError(f"RankedClassification.tasks: {name!r} reports no accuracy; use a multiple-choice task")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let the hub's libraries use only this machine's cache; without a network they would retry for half a minute."""
    import datasets
    import huggingface_hub

    places = datasets.config, huggingface_hub.constants
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def is_hub_reachable() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # any failure of the network
        return False
    return True
