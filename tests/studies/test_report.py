"""The report of finished runs: its tables are well formed, and its pictures are not empty."""

import csv
import itertools
import json
import re

import pytest
from PIL import Image

from lit_transfusion.studies import report
from lit_transfusion.studies.plan import ArmPlan
from lit_transfusion.studies.report import Circumstances, markdown, results_table, spread, write_report
from lit_transfusion.studies.runner import Outcome

PLANS = [ArmPlan(arm, f"{arm}\n", 20_000, 3_000, 5, 90.0, 4e6, None) for arm in ("causal", "both")]
CONTEXT = Circumstances("lit-transfusion ablate", ["commit abc", "commit def"], "a machine", 63.0)


@pytest.fixture
def reported(make_study, tmp_path):
    """Write the report on some outcomes; return its text and its folder."""

    def reported(outcomes, **changes):
        folder = tmp_path / "report"
        path = write_report(make_study(**changes), PLANS, outcomes, CONTEXT, folder)
        assert path == folder / "README.md"
        return path.read_text(encoding="utf-8"), folder

    return reported


@pytest.fixture
def outcomes(finished):
    """Two arms at three seeds; `both` is better by 1, 1.1 and 1.2."""
    return [
        Outcome(
            finished(arm, seed, {"perplexity": 5 + seed - better * (1 + seed / 10), "geneval": 0.5}, pictures=3), None
        )
        for seed in range(3)
        for arm, better in (("causal", 0), ("both", 1))
    ]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each Markdown table: a line of cells, a line of dashes, and lines of as many cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert set(rows[1]) == {"---"} and len({len(row) for row in rows}) == 1, block
        found.append([rows[0], *rows[2:]])
    return found


def test_results_include_baselines(reported, outcomes):
    for outcome in outcomes:
        path = outcome.job.folder / "evaluation.json"
        result = json.loads(path.read_text()) | {"baselines": {"noise": {"geneval": 0.0125}}}
        path.write_text(json.dumps(result))
    text, folder = reported(outcomes)
    cells = {cell for row in tables(text)[1] for cell in row}
    assert {"no model: noise", "0.0125"} <= cells
    assert "noise" not in (folder / "results.csv").read_text()  # it is not a run


def test_report_of_a_whole_study(reported, outcomes):
    text, folder = reported(outcomes)
    assert text.startswith("# study: Who may see whom?\n") and "commit abc" in text and "6 of 6 runs" in text
    findings, results, differences, cost = tables(text)
    (finding,) = findings[1:]
    assert finding[0] == r"Both ways \| is better"
    by_name = dict(zip(findings[0], finding, strict=True))
    assert (by_name["difference"], by_name["95 % interval"]) == ("+1.1", "[+0.852, +1.35]")
    assert by_name["each seed"] == "+1, +1.1, +1.2" and by_name["alone"] == by_name["holds here?"] == "yes"
    assert by_name["p"] == by_name["Holm"] == by_name["BH"] == "0.0027"  # it is the only finding
    assert "1 finding, 1 tested: 1 resolved alone, 1 with Holm's adjustment" in text and "0 at the floor" in text
    assert (
        "**alone**" in text and "**holds here?**" in text and "all 1 tested findings" in text
    )  # the meaning of the columns
    assert "**at the floor**" not in text and "**pictures**" not in text
    assert differences[1] == ["perplexity", "+1.1 [+0.852, +1.35]"]  # both minus causal, with its t interval
    # The table can be transposed; all numbers must be in it.
    by_name = {row[0]: row[1:] for row in (results if results[0][0] == "arm" else [])}
    assert by_name["arm"] == ["perplexity ↓", "geneval ↑", "paper: FID"] or by_name["arm"] == ["causal", "both"]
    assert "6 ± 1" in text and "4.9 ± 0.9" in text and "61.3" in text and "(Table 5)" in text
    assert [row[0] for row in cost[1:]] == ["causal", "both"] and cost[1][1:4] == ["0.02M", "0.00M", "5"]
    assert "## Left out" not in text
    for name in ("curves.png", "samples.png"):
        assert f"({name})" in text
        assert len(Image.open(folder / name).convert("L").getcolors(1 << 24)) > 2  # not empty
    assert len(list(csv.DictReader((folder / "results.csv").open()))) == 6


def test_report_names_intervals_with_pictures_and_findings_at_the_floor(reported, finished):
    claims = [{"says": "It ranks", "column": "ranked_captions", "better": "both", "worse": "causal"}]
    outcomes = []
    for arm, seed in itertools.product(("causal", "both"), range(3)):
        right = [1.0] * (4 + seed) + [0.0] * (12 - seed)
        job = finished(arm, seed, {"ranked_captions": sum(right) / 16})
        path = job.folder / "evaluation.json"
        more = {"each": {"ranked_captions": right}, "baselines": {"chance": {"ranked_captions": 0.25}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        outcomes.append(Outcome(job, None))
    text, _ = reported(outcomes, study={"metrics": ["RankedCaptions"], "claims": claims, "paper": {}})
    assert "1 at the floor" in text and tables(text)[0][1][-1] == "at the floor"
    assert "(ranked_captions: chance 0.25)" in text
    assert "**pictures**: for ranked_captions (16)" in text and "73 to 96 %" in text


def test_report_of_a_study_without_claims_and_a_table_of_the_paper(reported, outcomes):
    text, _ = reported(outcomes, study={"claims": [], "table": None})
    assert len(tables(text)) == 3 and "Findings" not in text and "None" not in text
    assert "The paper's numbers are from" in text


def test_paper_is_named_only_if_its_numbers_are_given(make_study, outcomes):
    jobs = [outcome.job for outcome in outcomes]
    assert "paper" in results_table(make_study(), jobs)
    assert "paper" not in results_table(make_study(study={"paper": {}}), jobs)


def test_failed_runs_are_listed_and_others_are_reported(reported, finished, make_job):
    lost = make_job("both", 0)
    done = finished("causal", 0, {"perplexity": 5.0}, skipped={"FID": "no weights | to be had"})
    text, folder = reported([Outcome(done, None), Outcome(lost, "error: | no such thing")])
    findings, *_ = tables(text)
    assert findings[1][-1] == "not measured" and "1 of 2 runs" in text
    assert "- both, seed 0: error: | no such thing" in text
    assert "- FID was not measured: no weights | to be had" in text
    assert "samples.png" not in text and (folder / "curves.png").stat().st_size > 1000


def test_report_without_finished_runs(reported, make_job):
    text, _ = reported([Outcome(make_job("causal"), "a"), Outcome(make_job("both"), "b")])
    assert "0 of 2 runs" in text and tables(text)


def test_sheet_has_a_row_for_each_arm_that_drew(reported, finished, make_job):
    """From its first finished seed, without the pictures that training saved in the folder."""
    first = finished("causal", 1, {"geneval": 0.5}, pictures=3)
    second = finished("both", 0, {"geneval": 0.5}, pictures=3)
    Image.new("RGB", (400, 400), "lime").save(first.folder / "samples" / "samples_000500.png")
    _, folder = reported([Outcome(make_job("causal", 0), "lost"), Outcome(second, None), Outcome(first, None)])
    colours = dict(reversed(pair) for pair in Image.open(folder / "samples.png").getcolors(1 << 24))
    for i in range(3):
        assert colours[255, 0, 10 * i] == 2 * report.TILE**2
    assert (0, 255, 0) not in colours


def test_pictures_of_training_are_not_samples(reported, finished, make_job):
    job = finished("causal", 0, {"perplexity": 0.5})
    (job.folder / "samples").mkdir()
    Image.new("RGB", (40, 40), "lime").save(job.folder / "samples" / "samples_000500.png")
    assert "samples.png" not in reported([Outcome(job, None), Outcome(make_job("both"), "lost")])[0]


def test_cells_are_escaped():
    text = markdown([["a", "b"], ["1 | 2", "two\nlines"]])
    assert tables(text + "\n") == [[["a", "b"], [r"1 \| 2", "two lines"]]]


def test_spread_over_seeds():
    assert (spread([]), spread([0.5]), spread([1.0, 3.0])) == ("–", "0.5", "2 ± 1.4")


def test_version_is_used_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git
    assert report.code_version() == f"version {report.__version__}"


def test_processor_has_a_name():
    assert report.cpu_name().strip()
