"""The statistics against brute force and scipy, and what is read of runs that were stopped, broke or lack something."""

import csv
import itertools
import random

import numpy as np
import pytest
import scipy.stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_study import write_metrics

from lit_transfusion.studies.results import (
    Difference,
    Interval,
    bootstrap,
    by_arm,
    columns_of,
    curve_of,
    decided,
    difference,
    flat,
    skipped_of,
    student_interval,
    write_results,
    write_tensorboard,
)

THREE = [0.3, -0.1, 0.7]

# Intervals


@pytest.mark.parametrize("values", [THREE, [1.0, 2.0], [5.0, 5.0, 5.5, 4.0], [0.0, 0.1, 0.2, 0.4, 0.8]])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_bootstrap_of_few_cuts_no_more_than_its_share_of_all_resamples(values, level):
    n = len(values)
    means = np.array([np.mean([values[i] for i in chosen]) for chosen in itertools.product(range(n), repeat=n)])
    low, high = bootstrap(values, level)
    share = (1 - level) / 2
    assert np.isclose(means, low).any() and np.isclose(means, high).any()
    for cut, kept in ((means < low - 1e-9, means <= low + 1e-9), (means > high + 1e-9, means >= high - 1e-9)):
        assert cut.mean() <= share < kept.mean()  # and one resample more would be too many


def test_bootstrap_of_three_spans_all_three():
    """27 resamples, of which each extreme is one, more than 2.5 %: hence the t interval."""
    assert bootstrap(THREE) == pytest.approx((-0.1, 0.7))


def test_bootstrap_of_many_is_that_of_scipy():
    values = [random.Random(i).gauss(1, 2) for i in range(12)]
    ours = bootstrap(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.03 * (theirs.high - theirs.low))
    assert bootstrap(values) == ours  # the same at each report


@pytest.mark.parametrize("values", [THREE, [1.0, 2.0], [3.0, 3.0, 3.5, 2.0, 9.0]])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_t_interval_is_that_of_scipy(values, level):
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(level)
    assert student_interval(values, level) == pytest.approx((theirs.low, theirs.high))


def test_t_interval_of_equal_differences_is_a_point():
    assert student_interval([0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("mean", "interval", "verdict"),
    [
        (1.0, Interval(0.5, 1.5), "yes"),
        (-1.0, Interval(-1.5, -0.5), "no"),
        (1.0, Interval(-0.5, 2.5), "not resolved"),
        (1.0, Interval(0.0, 2.0), "not resolved"),
        (float("nan"), Interval(float("nan"), float("nan")), "not resolved"),
        (1.0, None, "not resolved"),
    ],
)
def test_verdict_goes_by_the_t_interval(mean, interval, verdict):
    narrow = Interval(mean - 0.01, mean + 0.01)
    assert Difference([mean], mean, narrow, interval).verdict == verdict


# Differences


def test_differences_are_taken_seed_by_seed_in_the_direction_that_is_better(make_study):
    study = make_study()
    assert study.directions["perplexity"] == "less" and study.directions["geneval"] == "more"
    runs = {
        "both": {0: {"perplexity": 3.0, "geneval": 0.5}, 1: {"perplexity": 4.0, "geneval": 0.9}},
        "causal": {0: {"perplexity": 5.0, "geneval": 0.4}, 1: {"perplexity": 5.0, "geneval": 0.5}},
    }
    found = difference(runs, study, "perplexity", better="both", worse="causal")
    assert found.per_seed == [2.0, 1.0] and found.mean == 1.5  # lower by so much
    assert found.student == student_interval([2.0, 1.0]) and found.bootstrap == (1.0, 2.0)
    found = difference(runs, study, "geneval", better="both", worse="causal")
    assert found.per_seed == pytest.approx([0.1, 0.4])
    assert difference(runs, study, "geneval", "causal", "both").mean == pytest.approx(-found.mean)


def test_difference_can_be_resolved_where_the_arms_overlap(make_study):
    """What seeds have in common falls out."""
    runs = {
        "both": {seed: {"geneval": 0.1 * seed + 0.05 + 0.001 * seed} for seed in range(4)},
        "causal": {seed: {"geneval": 0.1 * seed} for seed in range(4)},
    }
    assert difference(runs, make_study(), "geneval", "both", "causal").verdict == "yes"
    assert difference(runs, make_study(), "geneval", "causal", "both").verdict == "no"


def test_seeds_that_one_arm_lacks_are_left_out(make_study):
    full = {"geneval": 0.5}
    runs = {"both": {0: full, 2: full, 3: {"perplexity": 1.0}, 4: full}, "causal": {1: full, 2: full, 3: full, 4: {}}}
    assert difference(runs, make_study(), "geneval", "both", "causal") == Difference([0.0], 0.0, None, None)
    runs["causal"].pop(2)
    assert difference(runs, make_study(), "geneval", "both", "causal") is None


def test_one_seed_resolves_nothing(make_study):
    runs = {"both": {0: {"perplexity": 1.0}}, "causal": {0: {"perplexity": 900.0}}}
    ((claim, found),) = decided(runs, make_study())
    assert claim.says.startswith("Both ways") and found.per_seed == [899.0]
    assert found.bootstrap is found.student is None and found.verdict == "not resolved"


# What is read of runs


def test_results_are_those_of_finished_runs(finished, make_job):
    jobs = [finished("causal", 0, {"geneval": 0.5}), make_job("causal", 1), finished("both", 1, {"geneval": 0.7})]
    assert by_arm(jobs) == {"causal": {0: {"geneval": 0.5}}, "both": {1: {"geneval": 0.7}}}
    assert columns_of(jobs[0]._replace(evaluate="metrics: [KID]\n")) == {}  # it was asked for something else


def test_reasons_are_those_of_what_was_asked(finished):
    job = finished("causal", 0, {}, skipped={"FID": "no weights"})
    assert skipped_of([job]) == {"FID": "no weights"}
    assert skipped_of([job._replace(evaluate="metrics: [KID]\n")]) == {}


def test_curve_goes_on_over_starts_and_the_later_is_right(finished):
    job = finished(losses=[(i, 10.0 - i, 1.0) for i in (2, 4, 6)])
    both = {"val/loss_text": 1.5, "val/loss_image": 0.5}
    for version in (10, 2):  # the tenth is after the second
        write_metrics(job, version, [{"step": 5, **both, "val/loss_text": version}, {"step": 7, **both}])
    curve = curve_of(job)
    assert curve.steps == [2, 4, 6, 8]
    assert curve.text == [8.0, 6.0, 10.0, 1.5] and curve.image == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "train/loss": 2.0}],
        [{"step": 1, "val/loss_text": 2.0}],
        [{"step": 1, "val/loss_text": "", "val/loss_image": ""}],
    ],
)
def test_curve_of_metrics_that_lack_something_has_no_points(make_job, rows):
    job = make_job()
    write_metrics(job, 0, rows)
    assert curve_of(job) == ([], [], [])
    assert curve_of(make_job("both")) == ([], [], [])


def test_csv_has_a_line_for_each_run(finished, make_job, tmp_path):
    jobs = [make_job("a", 0), finished("a", 1, {"x": 1.5}), finished("b, or c", 0, {"x": 2, "y": 0.1})]
    write_results(jobs, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"arm": "a", "seed": "0", "x": "", "y": ""},
            {"arm": "a", "seed": "1", "x": "1.5", "y": ""},
            {"arm": "b, or c", "seed": "0", "x": "2", "y": "0.1"},
        ]


def test_settings_and_results_are_written_for_tensorboard(finished):
    job = finished("both", 2, {"geneval": 0.25})
    changes = {"model": {"mask": "Causal", "size": {"dim": 16}}, "data": {"recipe": None, "scenes": ["a", "b"]}}
    write_tensorboard(job, changes)
    # hparams and numbers are in files of their own
    numbers, settings = {}, {}
    for path in job.folder.glob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        numbers |= {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        for tag, content in events.PluginTagToContent("hparams").items() if "hparams" in plugins(events) else ():
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

            data = HParamsPluginData.FromString(content)
            if tag.endswith("session_start_info"):
                settings = dict(data.session_start_info.hparams)
    assert numbers == {"evaluation/geneval": 0.25}
    said = {key: value.string_value or value.number_value for key, value in settings.items()}
    assert said == {
        "arm": "both",
        "seed": 2.0,
        "model.mask": "Causal",
        "model.size.dim": 16.0,
        "data.recipe": "null",
        "data.scenes": '["a", "b"]',
    }


def plugins(events: EventAccumulator) -> list[str]:
    return list(events.summary_metadata and {m.plugin_data.plugin_name for m in events.summary_metadata.values()})


def test_nested_settings_are_named_by_their_path():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": [3], "f": {}}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
