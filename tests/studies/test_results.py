"""Statistics compared with SciPy and known values, and results of incomplete runs."""

import csv
import json

import numpy as np
import pytest
import scipy.stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_transfusion.evaluation.metric import Metric
from lit_transfusion.studies.results import (
    Difference,
    Measured,
    adjusted_by_bh,
    adjusted_by_holm,
    by_arm,
    decided,
    difference,
    flat,
    measured_of,
    over_seeds,
    over_seeds_and_pictures,
    skipped_of,
    write_findings,
    write_results,
    write_tensorboard,
)

THREE = [0.3, -0.1, 0.7]


class Counted(Metric):
    """A metric that counts correct pictures."""

    columns = {"right": "more"}  # noqa: RUF012


def runs(**arms):
    """Results from the numbers of each arm by seed."""
    return {
        arm: {seed: Measured(columns, {}, {}) for seed, columns in by_seed.items()} for arm, by_seed in arms.items()
    }


def counts(scores, floor=0.0):
    """A run with the score of each picture, and two baselines; the higher one is the floor."""
    scores = list(map(float, scores))
    baselines = {"noise": {"right": floor}, "black": {"right": 0.0}, "other": {"perplexity": 1.0}}
    return Measured({"right": float(np.mean(scores))}, {"right": scores}, baselines)


# Intervals


@pytest.mark.parametrize("values", [THREE, [1.0, 2.0], [3.0, 3.0, 3.5, 2.0, 9.0]])
def test_interval_over_seeds_is_that_of_the_paired_t_test(values):
    others = [10.0 * i for i in range(len(values))]
    theirs = scipy.stats.ttest_rel([a + b for a, b in zip(values, others, strict=True)], others)
    (low, high), p = over_seeds(values)
    assert (low, high, p) == pytest.approx((*theirs.confidence_interval(0.95), theirs.pvalue))
    assert (p < 0.05) == (low > 0 or high < 0)


def test_equal_differences_have_an_interval_that_is_a_point():
    assert over_seeds([0.5, 0.5]) == ((0.5, 0.5), 0.0) and over_seeds([0.0, 0.0]) == ((0.0, 0.0), 1.0)
    nothing = np.zeros((3, 8))
    assert over_seeds_and_pictures([0.0] * 3, nothing) == ((0.0, 0.0), 1.0)


def test_interval_over_pictures_of_an_example():
    """Three seeds with the same number of correct pictures, but different ones."""
    scores = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    (low, high), p = over_seeds_and_pictures([0.25] * 3, scores)
    half = scipy.stats.t.ppf(0.975, 3) * np.std([2 / 3, 1 / 3, 0, 0], ddof=1) / 2
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half)) and 0.1 < p < 0.5
    assert over_seeds([0.25] * 3)[1] == 0  # the seeds alone do not show that there are only four pictures


@pytest.mark.parametrize(
    ("logits", "of_seeds", "of_prompts", "of_both", "least_of_seeds"),
    [
        ((-2.2, -2.8), 0.0, 0.0, 0.0, 0.9),  # independent pictures, about 10 % correct
        ((-3.5, -3.5), 0.0, 0.0, 0.0, 0.9),  # 3 % correct
        ((-2.0, -2.5), 0.3, 2.0, 2.0, 0.8),  # some prompts are easier, for one arm or both
        ((-2.0, -2.5), 0.0, 2.0, 4.0, 0.0),  # the prompt has the largest effect
        ((-1.0, -1.0), 1.0, 0.0, 0.0, 0.9),  # the seed has the largest effect
    ],
)
def test_interval_of_counts_contains_the_truth(logits, of_seeds, of_prompts, of_both, least_of_seeds):
    """In about 95 % of the cases, for all causes of variance. The interval over seeds alone does not."""
    random = np.random.default_rng(0)

    def logit(arm, seeds, prompts):
        """(seeds, prompts). `prompts` is the effect of each prompt on both arms."""
        by_seed = of_seeds * random.normal(size=(seeds, 1))
        return logits[arm] + by_seed + of_prompts * prompts + of_both * random.normal(size=prompts.shape)

    def chance(logit):
        return 1 / (1 + np.exp(-logit))

    spread = np.sqrt(of_seeds**2 + of_prompts**2 + of_both**2) * random.normal(size=200_000)
    truth = np.mean(chance(logits[0] + spread) - chance(logits[1] + spread))
    hits, hits_of_seeds, trials = 0, 0, 200
    for _ in range(trials):
        shared = random.normal(size=96)
        right = [random.random((3, 96)) < chance(logit(arm, 3, shared)) for arm in (0, 1)]
        scores = right[0].astype(float) - right[1]
        per_seed = scores.mean(1).tolist()
        (low, high), _ = over_seeds_and_pictures(per_seed, scores)
        hits += low <= truth <= high
        (low, high), _ = over_seeds(per_seed)
        hits_of_seeds += low <= truth <= high
    assert hits / trials >= 0.92
    assert hits_of_seeds / trials >= least_of_seeds
    assert least_of_seeds or hits_of_seeds / trials < 0.85


# Verdicts


@pytest.mark.parametrize(
    ("mean", "p", "verdict"),
    [(1.0, 0.04, "yes"), (-1.0, 0.04, "no"), (1.0, 0.05, "not resolved"), (1.0, None, "not resolved")],
)
def test_verdict_follows_the_p_value(mean, p, verdict):
    assert Difference([mean], mean).verdict(p) == verdict


def test_holm_of_an_example():
    """The smallest p value times n, the next times n - 1, and so on, never smaller than the one before."""
    assert adjusted_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted_by_holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert adjusted_by_holm([]) == adjusted_by_bh([]) == []


def test_holm_resolves_false_findings_in_five_percent_of_studies():
    random = np.random.default_rng(0)
    p_values = scipy.stats.ttest_1samp(random.normal(size=(1000, 9, 3)), 0, axis=2).pvalue
    assert np.mean((p_values < 0.05).any(1)) > 0.3
    adjusted = np.array([adjusted_by_holm(row) for row in p_values])
    assert 0.03 < np.mean((adjusted < 0.05).any(1)) < 0.07


def test_bh_is_scipys():
    p_values = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06]
    assert adjusted_by_bh(p_values) == pytest.approx(scipy.stats.false_discovery_control(p_values))


def test_findings_of_a_study_are_one_family(make_study):
    """A finding can be resolved alone and not with others. One that is not measured does not count."""
    says = [{"says": f"{i}", "column": column, "better": "both", "worse": "causal"} for i, column in enumerate(
        ["perplexity", "geneval", "geneval_colours", "geneval_counting"]
    )]  # fmt: skip
    study = make_study(study={"claims": says})
    noise = {"geneval": [0.1, -0.1, 0.0], "geneval_colours": [0.1, 0.2, -0.2]}
    results = runs(
        both={s: {"perplexity": 5.0} | {c: 0.5 + noise[c][s] for c in noise} for s in range(3)},
        causal={s: {"perplexity": 6.0 + 0.15 * s} | dict.fromkeys(noise, 0.5) for s in range(3)},
    )
    findings = decided(results, study)
    p_values = [one.found.p for one in findings[:3]]
    assert p_values[0] < 0.05 / 3 < 0.1 < p_values[1]
    assert [one.holm for one in findings[:3]] == pytest.approx(adjusted_by_holm(p_values))
    assert [one.bh for one in findings[:3]] == pytest.approx(adjusted_by_bh(p_values))
    assert [one.alone for one in findings] == ["yes", "not resolved", "not resolved", "not measured"]
    assert findings[0].holds == findings[0].holds_bh == "yes" and findings[3].holm is None
    for seed, run in results["causal"].items():
        run.columns["perplexity"] = 5.0 + [0.6, 0.9, 1.2][seed]
    first = decided(results, study)[0]
    assert first.found.p < 0.05 < first.holm and (first.alone, first.holds) == ("yes", "not resolved")


@pytest.fixture
def counting(make_study):
    claims = [{"says": "Both", "column": "right", "better": "both", "worse": "causal"}]
    return make_study(study={"metrics": [f"{__name__}.Counted"], "claims": claims})


def test_findings_at_the_floor(counting):
    """31 and 21 correct of 288, where noise has about 5 %."""
    floor = 0.05
    few = {"both": [12, 9, 10], "causal": [6, 7, 8]}
    results = {
        arm: {seed: counts([1] * n + [0] * (96 - n), floor) for seed, n in enumerate(right)}
        for arm, right in few.items()
    }
    (finding,) = decided(results, counting)
    assert finding.at_floor and finding.alone == finding.holds == finding.holds_bh == "at the floor"
    results["both"] = {seed: counts([1] * (50 + seed) + [0] * (46 - seed), floor) for seed in range(3)}
    (finding,) = decided(results, counting)
    assert not finding.at_floor and finding.alone == finding.holds == "yes"


def test_without_baselines_no_finding_is_at_the_floor(counting):
    results = {arm: {seed: counts([0, 0, 1]) for seed in range(3)} for arm in ("both", "causal")}
    assert decided(results, counting)[0].at_floor
    for arm in results.values():
        for run in arm.values():
            run.baselines.clear()
    assert not decided(results, counting)[0].at_floor


def test_interval_includes_pictures_if_all_runs_have_the_same(counting):
    random = np.random.default_rng(1)
    results = {
        arm: {seed: counts(random.random(50) < share) for seed in range(3)}
        for arm, share in (("both", 0.6), ("causal", 0.4))
    }
    found = difference(results, counting, "right", "both", "causal")
    scores = np.array([[run.each["right"] for run in results[arm].values()] for arm in ("both", "causal")])
    assert found.num_pictures == 50
    assert (found.interval, found.p) == over_seeds_and_pictures(found.per_seed, scores[0] - scores[1])
    results["both"][1].each["right"].pop()
    found = difference(results, counting, "right", "both", "causal")
    assert found.num_pictures == 0 and (found.interval, found.p) == over_seeds(found.per_seed)


# Differences


def test_differences_are_taken_seed_by_seed_in_the_direction_that_is_better(make_study):
    study = make_study()
    assert study.directions["perplexity"] == "less" and study.directions["geneval"] == "more"
    results = runs(
        both={0: {"perplexity": 3.0, "geneval": 0.5}, 1: {"perplexity": 4.0, "geneval": 0.9}},
        causal={0: {"perplexity": 5.0, "geneval": 0.4}, 1: {"perplexity": 5.0, "geneval": 0.5}},
    )
    found = difference(results, study, "perplexity", better="both", worse="causal")
    assert found.per_seed == [2.0, 1.0] and found.mean == 1.5  # perplexity is lower by this
    assert (found.interval, found.p) == over_seeds([2.0, 1.0])
    found = difference(results, study, "geneval", better="both", worse="causal")
    assert found.per_seed == pytest.approx([0.1, 0.4])
    assert difference(results, study, "geneval", "causal", "both").mean == pytest.approx(-found.mean)


def test_difference_can_be_resolved_if_the_arms_overlap(make_study):
    """The effect of the seed cancels."""
    results = runs(
        both={seed: {"geneval": 0.1 * seed + 0.05 + 0.001 * seed} for seed in range(4)},
        causal={seed: {"geneval": 0.1 * seed} for seed in range(4)},
    )
    assert difference(results, make_study(), "geneval", "both", "causal").p < 0.01


def test_seeds_missing_in_one_arm_are_left_out(make_study):
    full = {"geneval": 0.5}
    results = runs(both={0: full, 2: full, 3: {"perplexity": 1.0}, 4: full}, causal={1: full, 2: full, 3: full, 4: {}})
    assert difference(results, make_study(), "geneval", "both", "causal") == Difference([0.0], 0.0)
    results["causal"].pop(2)
    assert difference(results, make_study(), "geneval", "both", "causal") is None


def test_one_seed_or_numbers_that_are_not_finite_resolve_nothing(make_study):
    results = runs(both={0: {"perplexity": 1.0}}, causal={0: {"perplexity": 900.0}})
    (finding,) = decided(results, make_study())
    assert finding.claim.says.startswith("Both ways") and finding.found.per_seed == [899.0]
    assert finding.found.interval is finding.found.p is finding.holm is None
    assert finding.alone == finding.holds == "not resolved"
    results = runs(
        both={s: {"perplexity": float("nan")} for s in (0, 1)}, causal={s: {"perplexity": 1.0} for s in (0, 1)}
    )
    (finding,) = decided(results, make_study())
    assert finding.holm is None and finding.holds == "not resolved"


# Results of runs


def test_results_are_those_of_finished_runs(finished, make_job):
    jobs = [finished("causal", 0, {"geneval": 0.5}), make_job("causal", 1), finished("both", 1, {"geneval": 0.7})]
    assert by_arm(jobs) == runs(causal={0: {"geneval": 0.5}}, both={1: {"geneval": 0.7}})
    assert measured_of(jobs[0]._replace(evaluate="metrics: [KID]\n")) == ({}, {}, {})  # other metrics are wanted now
    path = jobs[0].folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"each": {"geneval": [1, 0]}}))
    assert measured_of(jobs[0]).each == {"geneval": [1, 0]}


def test_reasons_are_those_of_the_current_metrics(finished):
    job = finished("causal", 0, {}, skipped={"FID": "no weights"})
    assert skipped_of([job]) == {"FID": "no weights"}
    assert skipped_of([job._replace(evaluate="metrics: [KID]\n")]) == {}
    other = finished("both", 0, {})
    assert skipped_of([job, other]) == {"FID of causal": "no weights"}


def test_csv_has_a_line_for_each_run(finished, make_job, tmp_path):
    jobs = [make_job("a", 0), finished("a", 1, {"x": 1.5}), finished("b, or c", 0, {"x": 2, "y": 0.1})]
    write_results(jobs, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"arm": "a", "seed": "0", "x": "", "y": ""},
            {"arm": "a", "seed": "1", "x": "1.5", "y": ""},
            {"arm": "b, or c", "seed": "0", "x": "2", "y": "0.1"},
        ]


def test_findings_csv_has_all_columns(finished, make_study, tmp_path):
    perplexities = {"causal": [5.0, 5.1, 5.2], "both": [4.0, 4.0, 4.0]}
    jobs = [
        finished(arm, seed, {"perplexity": value})
        for arm, three in perplexities.items()
        for seed, value in enumerate(three)
    ]
    study = make_study()
    write_findings(study, jobs, tmp_path / "findings.csv")
    (line,) = csv.DictReader((tmp_path / "findings.csv").open(newline=""))
    found = difference(by_arm(jobs), study, "perplexity", "both", "causal")
    assert [float(line[key]) for key in ("difference", "low", "high", "p", "holm", "bh")] == pytest.approx(
        [found.mean, *found.interval, found.p, found.p, found.p]
    )
    assert (line["at_floor"], line["alone"], line["holds"], line["num_pictures"]) == ("False", "yes", "yes", "0")


def test_settings_and_results_are_written_for_tensorboard(finished):
    job = finished("both", 2, {"geneval": 0.25})
    changes = {"model": {"mask": "Causal", "size": {"dim": 16}}, "data": {"recipe": None, "scenes": ["a", "b"]}}
    write_tensorboard(job, changes)
    # hparams and numbers are in different files
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
    written = {key: value.string_value or value.number_value for key, value in settings.items()}
    assert written == {
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
