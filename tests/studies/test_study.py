"""Reading of study files; errors that would appear after hours of training are found first."""

import pytest
import yaml

from lit_transfusion.errors import InputError
from lit_transfusion.studies.study import read_study

CLAIM = {"says": "x", "column": "geneval", "better": "both", "worse": "causal"}


def test_study_is_read(make_study):
    study = make_study()
    assert (study.name, study.question) == ("study", "Who may see whom?")
    assert study.arms == ["causal", "both"]
    assert [type(metric).__name__ for metric in study.asked.metrics] == ["Perplexity", "GenEvalShapes"]
    assert study.directions["perplexity"] == "less" and study.directions["geneval"] == "more"
    assert study.asked.claims[0].better == "both" and study.asked.paper == {"causal": {"FID": 61.3}}


def test_section_of_the_file_overwrites_that_of_its_base(make_study, tmp_path):
    make_study()
    (tmp_path / "more.yaml").write_text("base: study.yaml\nstudy: {num_examples: 7}\n")
    study = read_study(tmp_path / "more.yaml")
    assert (study.asked.num_examples, study.asked.num_inference_steps, study.question) == (7, 2, "")


def test_options_of_evaluate_are_those_of_the_section(make_study):
    options = yaml.safe_load(make_study(study={"guidance_scale": 2.0}).evaluate_options())
    metrics = options.pop("metrics")
    assert [metric["class_path"].rpartition(".")[2] for metric in metrics] == ["Perplexity", "GenEvalShapes"]
    assert metrics[1]["init_args"] == {"prompts_per_category": 1}
    assert options == {"num_examples": 3, "num_inference_steps": 2, "guidance_scale": [2.0]}


def test_selected_arms_keep_only_their_claims(make_study):
    study = make_study(study={"paper": {"causal": {"FID": 1.0}, "both": {"FID": 2.0}}})
    assert study.only(None) == study == study.only(["both", "causal"])  # in the file's order
    fewer = study.only(["both"])
    assert fewer.arms == ["both"] and fewer.asked.claims == [] and fewer.asked.paper == {"both": {"FID": 2.0}}


@pytest.mark.parametrize(("arms", "text"), [(["none"], "no arm 'none'; it has causal, both"), ([], "--arms is empty")])
def test_unknown_arms_are_an_error(make_study, arms, text):
    with pytest.raises(InputError, match=text):
        make_study().only(arms)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"arms": {}}, ["`arms`"]),
        ({"arms": {"../x": {}}}, ["'../x'", "rename"]),
        ({"arms": {"report": {}}, "study": {"claims": [], "paper": {}}}, ["'report'", "rename"]),
        ({"study": [1]}, ["`study`", "keys and values"]),
        ({"study": {"metrics": []}}, ["study.metrics", "at least one"]),
        ({"study": {"metrics": ["Perplexy"]}}, ["Perplexy", "known: BLEU", "Perplexity"]),
        ({"study": {"metrics": [{"class_path": "KID", "init_args": {"size": 1}}]}}, ["KID", "'size'"]),
        (
            {
                "study": {
                    "metrics": [
                        {
                            "class_path": "KID",
                            "init_args": {"features": {"class_path": "EfficientNetLite0", "init_args": {"side": 33}}},
                        }
                    ]
                }
            },
            ["side 33"],
        ),
        ({"study": {"nothing": 1}}, ["'nothing'"]),
        ({"study": {"num_examples": 1}}, ["num_examples 1"]),
        ({"study": {"guidance_scale": -1}}, ["guidance_scale -1"]),
        ({"study": {"claims": [{"says": "x"}]}}, ["claims", "column, better, worse"]),
        ({"study": {"claims": [CLAIM | {"column": "fid"}]}}, ["'fid'", "perplexity", "geneval"]),
        (
            {"study": {"metrics": ["tiny_study.OutOfReach"], "claims": [CLAIM | {"column": "distance"}]}},
            ["'distance'", "no better direction"],
        ),
        ({"study": {"claims": [CLAIM | {"better": "none"}]}}, ["'none'", "causal, both"]),
        ({"study": {"claims": [CLAIM | {"worse": "none"}]}}, ["'none'", "causal, both"]),
        ({"study": {"paper": {"none": {"FID": 1.0}}}}, ["'none'", "causal, both"]),
        ({"study": {"paper": {"both": {"FID": "good"}}}}, ["paper", "good"]),
    ],
    ids=str,
)
def test_error_names_the_file_and_the_value(make_study, changes, texts):
    with pytest.raises(InputError) as caught:
        make_study(**changes)
    assert "study.yaml" in str(caught.value) and "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("arms: {a: {}, b: {}}", "`study: {metrics"),
        ("study: {metrics: [Perplexity]}", "`arms: {NAME"),
        (
            "arms:\n  a: {model: {size: tiny}}\n  a: {model: {size: nano}}",
            "line 3: duplicate key 'a', first used in line 2",
        ),
    ],
)
def test_file_that_is_not_a_study_is_an_error(tmp_path, content, text):
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        read_study(tmp_path / "file.yaml")
    assert "file.yaml" in str(caught.value) and text in str(caught.value)


def test_missing_file_is_an_error():
    with pytest.raises(InputError, match=r"none\.yaml not found"):
        read_study("none.yaml")
