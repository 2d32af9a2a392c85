"""The model in lm-eval, on tasks that are made here: against our own ranking, and against the sampler."""

import importlib
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given_examples import subject_of

from lit_transfusion.cli import main
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Document, TextSegment
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation import ranked_classification
from lit_transfusion.evaluation.likelihood import caption_alone, text_likelihoods
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.evaluation.ranked_classification import TASKS, RankedClassification, is_hub_reachable
from lit_transfusion.generation.engine import Images, generate
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.model import Transfusion
from lit_transfusion.shapes.scenes import Count, Relation, Single, captions_of, held_out_scenes

sys.path.insert(0, str(TASKS))
import shape_language

QUESTIONS = [
    {"text": "a red", "endings": ["circle", "square and a", "triangles on white"], "label": 0},
    {"text": "two green", "endings": ["on", "triangles"], "label": 1},
    {"text": "", "endings": ["a blue square", "white on green two"], "label": 0},
    {"text": "and a blue", "endings": ["square", "red"], "label": 0},
    {"text": "a", "endings": ["a", "circle"], "label": 1},
    {"text": "a blue", "endings": ["square", "circle and two triangles on white"], "label": 1},
]
YAML = """
task: {name}
dataset_path: {path}
{kwargs}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: label
doc_to_choice: endings
metric_list:
{metrics}
"""


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of tasks, with an empty cache and a hub address that does not answer."""
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def write_task(folder, name="endings", metrics=("acc",), questions=QUESTIONS, path="json"):
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / f"{name}.jsonl").write_text(lines)
    kwargs = f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}" if path == "json" else ""
    listed = "\n".join(f"  - {{metric: {m}, aggregation: mean, higher_is_better: true}}" for m in metrics)
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, path=path, kwargs=kwargs, metrics=listed))


def ask(pipeline, **options):
    return RankedClassification(**options).accuracies(pipeline, batch_size=3)


def request(*arguments):
    return SimpleNamespace(args=arguments)


def text_score(pipeline, context, ending):
    """The log-probability of the ending after the context, from the likelihoods of two whole texts."""
    whole = f"{context} {ending}" if context else ending
    of_whole, of_context = (
        text_likelihoods(pipeline, [caption_alone(pipeline, text)])[0].log_probability for text in (whole, context)
    )
    return of_whole - of_context


def test_accuracy_equals_our_own_ranking(lm_eval, make_pipeline, folder):
    pipeline, right, right_by_letter = make_pipeline(), 0, 0
    for question in QUESTIONS:
        scores = [text_score(pipeline, question["text"], ending) for ending in question["endings"]]
        by_letter = [score / len(ending) for score, ending in zip(scores, question["endings"], strict=True)]
        right += scores.index(max(scores)) == question["label"]
        right_by_letter += by_letter.index(max(by_letter)) == question["label"]
    assert right != right_by_letter  # otherwise an error in one could look like the other
    write_task(folder, "plain")
    write_task(folder, "normalised", metrics=("acc", "acc_norm"))
    metric = RankedClassification(("plain", "normalised"), str(folder))
    found = metric(subject_of(pipeline, batch_size=4))
    mean = (right + right_by_letter) / 12
    assert found == pytest.approx(
        {"ranked_classification": mean, "plain": right / 6, "normalised": right_by_letter / 6}
    )
    assert list(metric.columns) == list(found)


def test_limit_takes_the_first(lm_eval, make_pipeline, folder):
    pipeline = make_pipeline()
    torch.nn.init.zeros_(pipeline.net.head.weight)  # so that the ending with the fewest tokens is the likeliest
    write_task(folder, questions=[{"text": "a", "endings": ["a", "circle and"], "label": i % 2} for i in range(4)])
    assert ask(pipeline, tasks=["endings"], include_path=str(folder), limit=1)["endings"] == 1
    assert ask(pipeline, tasks=["endings"], include_path=str(folder))["endings"] == 1 / 2


def test_the_global_random_state_does_not_change(lm_eval, make_pipeline, folder):
    write_task(folder)
    pipeline = make_pipeline()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    ask(pipeline, tasks=["endings"], include_path=str(folder))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_of_endings(lm_eval, make_pipeline, batch_size):
    from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

    pipeline = make_pipeline()
    pairs = [(q["text"], " " * bool(q["text"]) + ending) for q in QUESTIONS for ending in q["endings"]]
    found = TransfusionLM(pipeline, batch_size).loglikelihood([request(*pair) for pair in pairs])
    expected = [text_score(pipeline, context, ending.strip()) for context, ending in pairs]
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-4)
    assert all(is_greedy is False for _, is_greedy in found)


def test_greedy_equals_what_the_sampler_writes(lm_eval, make_pipeline):
    from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

    pipeline = make_pipeline()
    sampled = generate(pipeline, [prompt_document(pipeline)], Sampling(max_new_tokens=4), images=Images.NEVER)
    tokens = list(sampled[0].token_ids)
    others = [*tokens[:-1], tokens[-1] ^ 1]
    model = TransfusionLM(pipeline)
    found = model._loglikelihood_tokens([(None, [pipeline.tokenizer.bos], tokens), (None, tokens[:2], others[2:])])
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_long_context_is_cut_at_the_left(lm_eval, make_pipeline):
    from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

    pipeline = make_pipeline()
    tokenizer = pipeline.tokenizer
    context = list(tokenizer.encode("two green triangles on white and a blue square"))
    ending = list(tokenizer.encode("red circle"))
    pipeline.sequence_length = 1 + 5 + len(ending)
    cut = Document((TextSegment((tokenizer.bos, *context[-5:]), learn=False), TextSegment(tuple(ending))))
    expected = text_likelihoods(pipeline, [cut])[0].log_probability
    found = TransfusionLM(pipeline)._loglikelihood_tokens([(None, [tokenizer.bos, *context], ending)])
    assert found[0][0] == pytest.approx(expected)


def test_rolling_predicts_each_token_once(lm_eval, make_pipeline):
    """With a uniform model, the sum counts tokens; a short text gives the same as in one piece."""
    from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

    pipeline = make_pipeline()
    text = "two green triangles on white and a blue square"
    texts = [request(text), request("a"), request("")]
    (whole,) = text_likelihoods(pipeline, [caption_alone(pipeline, text)])
    found = TransfusionLM(pipeline).loglikelihood_rolling(texts)
    assert found[0] == pytest.approx(whole.log_probability) and found[2] == 0
    torch.nn.init.zeros_(pipeline.net.head.weight)
    counts = [len(pipeline.tokenizer.encode(text)), len(pipeline.tokenizer.encode("a")), 0]
    for longest in (4, 7, counts[0] + 1, None):
        pipeline.sequence_length = longest
        found = TransfusionLM(pipeline).loglikelihood_rolling(texts)
        assert found == pytest.approx([-count * math.log(pipeline.tokenizer.vocab_size) for count in counts])


def test_writing_equals_the_sampler(lm_eval, make_pipeline):
    from lit_transfusion.evaluation.lm_eval_model import TransfusionLM

    pipeline = make_pipeline()
    contexts = ["a red", "two green triangles", "a"]
    model = TransfusionLM(pipeline, batch_size=2)
    whole = model.generate_until([request(context, {"until": ["\n\n"], "max_gen_toks": 6}) for context in contexts])
    documents = [prompt_document(pipeline, context) for context in contexts]
    samples = generate(pipeline, documents, Sampling(max_new_tokens=6), images=Images.NEVER)
    for context, text, sample in zip(contexts, whole, samples, strict=True):
        prompt = list(pipeline.tokenizer.encode(context))
        assert context + text == pipeline.tokenizer.decode([*prompt, *sample.token_ids])
    stop = whole[0][2:4]
    assert len(stop) == 2
    (stopped,) = model.generate_until([request("a red", {"until": ["not in it", stop], "max_gen_toks": 6})])
    assert stopped == whole[0][: whole[0].index(stop)]
    (sampled,) = model.generate_until([request("a red", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 6})])
    assert sampled != whole[0]


def test_registered_by_name(lm_eval, make_pipeline, tmp_path):
    from lm_eval.api.registry import get_model

    make_pipeline().save_pretrained(tmp_path / "model")
    importlib.import_module("lit_transfusion.evaluation.lm_eval_model")
    model = get_model("lit_transfusion").create_from_arg_string(
        f"pretrained={tmp_path / 'model'},device=cpu", {"batch_size": "2"}
    )
    assert model.batch_size == 2 and str(model.device) == "cpu"
    assert len(model.loglikelihood([request("a", " circle")])) == 1


def test_data_that_only_the_hub_has(lm_eval, make_pipeline, folder):
    write_task(folder, path="nobody/has-this")
    with pytest.raises(Unavailable, match=r"^RankedClassification\.tasks endings: .*this machine.*hub"):
        ask(make_pipeline(), tasks=["endings"], include_path=str(folder))


def test_the_hub_is_not_asked_for_local_data(lm_eval, make_pipeline, folder, monkeypatch):
    write_task(folder)
    monkeypatch.setattr(ranked_classification, "is_hub_reachable", lambda: pytest.fail("asked"))
    assert "endings" in ask(make_pipeline(), tasks=["endings"], include_path=str(folder))


def test_hub_that_is_not_reachable(folder):
    assert not is_hub_reachable()


def test_invalid_tasks(lm_eval, make_pipeline, folder):
    write_task(folder)
    (folder / "endings.jsonl").unlink()
    with pytest.raises(InputError, match=r"RankedClassification\.tasks endings: .*FileNotFoundError"):
        ask(make_pipeline(), tasks=["endings"], include_path=str(folder))
    write_task(folder, metrics=("bleu",))
    with pytest.raises(InputError, match=r"RankedClassification\.tasks.*'endings' reports no accuracy"):
        ask(make_pipeline(), tasks=["endings"], include_path=str(folder))


@pytest.mark.parametrize("options", [{"tasks": []}, {"tasks": ["a", "a"]}, {"include_path": "nowhere"}])
def test_invalid_options(options):
    with pytest.raises(InputError, match=r"RankedClassification\.(tasks|include_path)"):
        RankedClassification(**options)


def test_without_lm_eval(make_pipeline, monkeypatch):
    for name in ("lm_eval", "lm_eval.api.model", "lm_eval.api.registry", "lm_eval.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lit_transfusion.evaluation.lm_eval_model", raising=False)
    importlib.import_module("lit_transfusion.evaluation.lm_eval_model")
    monkeypatch.delitem(sys.modules, "lit_transfusion.evaluation.lm_eval_model")
    with pytest.raises(Unavailable, match=r'pip install -e "\.\[lm-eval\]"'):
        ask(make_pipeline())


def test_command(lm_eval, make_pipeline, folder, tmp_path, capsys):
    make_pipeline().save_pretrained(tmp_path / "model")
    write_task(folder)
    expected = ask(make_pipeline(), tasks=["endings"], include_path=str(folder))["endings"]
    options = ["rank_choices", "--ckpt", str(tmp_path / "model"), "--device", "cpu", "--include_path", str(folder)]
    main([*options, "--task", "endings", "--task", "shape_language", "--limit", "6"])
    printed = capsys.readouterr().out
    assert f"{100 * expected:.1f} %" in printed and "shape_language" in printed and "mean" in printed
    write_task(folder, path="nobody/has-this")
    with pytest.raises(SystemExit) as stopped:
        main([*options, "--task", "endings"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: RankedClassification.tasks endings: ")


# ------------------------------------------------------------------------------------------------------ shape_language


def test_questions_in_the_file_equal_those_of_the_generator():
    written = [json.loads(line) for line in shape_language.FILE.read_text().splitlines()]
    assert written == list(shape_language.questions())
    assert len(written) == len({json.dumps(question) for question in written}) == 100


def test_a_preference_for_words_gives_chance():
    """In each kind, either form of the ending is right in half of the questions."""
    has_form = {
        "number_of_noun": lambda ending: (ending.endswith("s") and not ending.endswith("ss")) or ending == "crosses",
        "number_of_verb": lambda ending: ending.startswith("are"),
        "relation": lambda ending: ending.startswith("of"),
        "place": lambda ending: ending == "centre",
    }
    for kind, form in has_form.items():
        questions = [question for question in shape_language.questions() if question["kind"] == kind]
        assert len(questions) == 20
        assert all(sum(map(form, question["choices"])) == 1 for question in questions)
        assert sum(form(question["choices"][question["label"]]) for question in questions) == 10
    orders = [question for question in shape_language.questions() if question["kind"] not in has_form]
    assert all(sorted(first.split()) == sorted(second.split()) for first, second in (q["choices"] for q in orders))
    assert 40 <= sum(question["label"] for question in shape_language.questions()) <= 60


def test_right_endings_are_in_captions_and_wrong_ones_are_not():
    """Each right sentence is part of a caption; the wrong one is part of none."""
    captions = [
        caption + " "
        for kind in (Single, Count, Relation)
        for scene in kind.every()
        for caption in captions_of(scene, scene.wordings)
    ]
    text = "\n".join(dict.fromkeys(captions))
    for question in shape_language.questions():
        sentences = [f"{question['context']} {choice} " for choice in question["choices"]]
        assert [sentence in text for sentence in sentences].index(True) == question["label"]
        assert [sentence in text for sentence in sentences].count(True) == 1


def test_shape_language_runs(lm_eval, make_pipeline):
    """A uniform model chooses the ending with the fewest tokens, and the first of two equal ones."""
    scenes = [scene for kind in (Single, Count, Relation) for scene in held_out_scenes(kind)]
    tokenizer = Tokenizer.train((c for scene in scenes for c in captions_of(scene, scene.wordings)), 300)
    other = make_pipeline()
    size = other.net.transformer.config
    net = Transfusion(tokenizer.vocab_size, size, other.net.patcher, other.net.mask).eval()
    torch.nn.init.zeros_(net.head.weight)
    pipeline = Pipeline(net, other.noise, other.codec, tokenizer, image_size=4)
    right = 0
    for question in shape_language.questions():
        tokens = [len(tokenizer.encode(f"{question['context']} {choice}")) for choice in question["choices"]]
        right += tokens.index(min(tokens)) == question["label"]
    assert ask(pipeline)["shape_language"] == right / 100
