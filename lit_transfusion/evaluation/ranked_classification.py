"""Text-only tasks with choices, such as the commonsense tasks of the Llama papers, as lm-eval has them."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.progress import OnProgress, silent

if TYPE_CHECKING:
    from lm_eval.api.task import Task

TASKS = Path(__file__).parents[1] / "shapes" / "tasks"  # our own
LLAMA_SUITE = ("hellaswag", "piqa", "social_iqa", "winogrande", "arc_easy", "arc_challenge", "boolq")


class RankedClassification(Metric):
    """Accuracy at choosing the likeliest of several endings of a text, by lm-eval, with no picture anywhere.

    For each task there is a column of its name, and `ranked_classification` is their mean. Of a task that reports
    `acc_norm`, which ranks log-likelihoods divided by the letters of the choice, that is taken; else `acc`. So did
    Llama (Touvron et al., 2023), whose suite the paper reports the mean of (4.1): hellaswag, piqa, social_iqa,
    winogrande, arc_easy, arc_challenge, boolq. Their data comes from the Hugging Face hub, or from its cache on this
    machine. Our own `shape_language` asks, offline, for grammar in the words of the Shapes captions; chance is 1/2.

    Args:
        tasks: Names of lm-eval's tasks, of those in `include_path`, or `shape_language`.
        include_path: Folder with YAML files of more tasks.
        limit: Questions of each task at most: the first; null for all.
        num_fewshot: Questions that are shown with their answers before each; null for what the task says, or none.
    """

    columns: ClassVar[dict[str, str]] = {"ranked_classification": "more"}  # and one for each task
    samples: ClassVar[bool] = False

    def __init__(
        self,
        tasks: tuple[str, ...] = ("shape_language",),
        include_path: str | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
    ) -> None:
        if not tasks or len(set(tasks)) < len(tasks):
            raise InputError(f"RankedClassification.tasks {list(tasks)}: name at least one, and each once")
        if include_path is not None and not Path(include_path).is_dir():
            raise InputError(f"RankedClassification.include_path {include_path}: there is no such folder")
        self.tasks = list(tasks)
        self.include_path = include_path
        self.limit = limit
        self.num_fewshot = num_fewshot
        self.columns = dict.fromkeys(["ranked_classification", *self.tasks], "more")

    def __call__(self, subject: Subject) -> dict[str, float]:
        found = self.accuracies(subject.pipeline, subject.batch_size, subject.on_progress)
        return {"ranked_classification": sum(found.values()) / len(found), **found}

    def accuracies(
        self, pipeline: Pipeline, batch_size: int = 64, on_progress: OnProgress = silent
    ) -> dict[str, float]:
        """In [0, 1], by task. A model is all that it takes: the text is in the tasks."""
        try:
            import lm_eval
        except ImportError:
            raise Unavailable('lm-eval is not installed: pip install -e ".[lm-eval]"') from None
        from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of options that tasks may have
        loaded = self._load()
        for task in loaded["tasks"].values():
            if self.num_fewshot is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
            task.set_fewshot_seed(seed=1234)  # lm-eval's own default
        # Not simple_evaluate, which sows the random numbers of the whole process anew and asks it for its packages.
        model = TransfusionLM(pipeline, batch_size, on_progress=on_progress)
        results = lm_eval.evaluate(model, loaded, limit=self.limit, bootstrap_iters=0, log_samples=False)["results"]
        return {name: accuracy(name, results[name]) for name in self.tasks}

    def _load(self) -> dict[str, dict[str, "Task"]]:
        """The tasks with their data: from this machine if all of it is here, else from the hub."""
        from lm_eval.tasks import TaskManager

        folders = [str(TASKS), *([self.include_path] if self.include_path else [])]
        manager = TaskManager(include_path=folders, include_defaults=False)
        if not set(self.tasks) <= set(manager.all_tasks):  # to read lm-eval's own takes seconds
            manager = TaskManager(include_path=folders)
        unknown = [name for name in self.tasks if name not in manager.all_tasks]
        if unknown:
            raise InputError(f"RankedClassification.tasks: neither lm-eval nor include_path has a task {unknown[0]!r}")
        groups = [name for name in self.tasks if name not in manager.all_subtasks]
        if groups:
            raise InputError(f"RankedClassification.tasks: {groups[0]!r} stands for several tasks; name those")
        try:
            with offline():
                return manager.load(self.tasks)
        except Exception as error:  # whatever is wrong with the YAML or the data
            if not is_hub_in_reach():
                raise self._refusal(error) from error
        try:
            return manager.load(self.tasks)
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> Exception:
        tasks = ", ".join(self.tasks)
        if isinstance(error, ConnectionError):
            return Unavailable(f"the data of {tasks} is not all on this machine, and the hub is out of reach")
        reason = (str(error).strip().splitlines() or [""])[0]
        return InputError(f"RankedClassification.tasks {tasks}: lm-eval finds {type(error).__name__}: {reason}")


def accuracy(name: str, results: dict[str, float]) -> float:
    for measure in ("acc_norm,none", "acc,none"):
        if measure in results:
            return float(results[measure])
    raise InputError(f"RankedClassification.tasks: {name!r} reports no accuracy, so nothing is ranked in it")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keeps the libraries of the hub to what is on this machine; else they would try for half a minute."""
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


def is_hub_in_reach() -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whichever way the network fails
        return False
    return True
