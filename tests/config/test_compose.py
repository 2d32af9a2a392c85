"""In which order the files of a run are laid over each other, and what is wrong with them."""

from pathlib import Path

import pytest
import yaml

from lit_transfusion.config.compose import compose, read, study_section
from lit_transfusion.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Writes a file of the folder and returns its path."""

    def write(name: str, content: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def names(parts):
    """What the parts are called, without the folder they are in."""
    return [path.rpartition("/")[2] for path, _ in parts]


def error_of(path, arm=None) -> str:
    with pytest.raises(InputError) as caught:
        compose(path, arm)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files that build on others


def test_file_alone_is_what_it_says(write):
    path = write("run.yaml", "model: {size: nano}\ndata: {batch_size: 4}")
    assert compose(path) == [(str(path), {"model": {"size": "nano"}, "data": {"batch_size": 4}})]
    assert compose(str(path)) == compose(path)


def test_bases_come_first_and_their_bases_before_them(write):
    write("a.yaml", "value: a")
    write("b.yaml", "base: a.yaml\nvalue: b")
    path = write("c.yaml", "base: b.yaml\nvalue: c")
    assert [content for _, content in compose(path)] == [{"value": "a"}, {"value": "b"}, {"value": "c"}]


def test_list_of_bases_is_in_its_order(write):
    write("a.yaml", "value: a")
    write("b.yaml", "value: b")
    path = write("c.yaml", "base: [b.yaml, a.yaml]\nvalue: c")
    assert names(compose(path)) == ["b.yaml", "a.yaml", "c.yaml"]


def test_base_of_two_is_laid_down_twice(write):
    """Below each of them, so that the later of the two means what it means alone."""
    write("a.yaml", "value: a")
    write("b.yaml", "base: a.yaml")
    write("c.yaml", "base: a.yaml")
    path = write("d.yaml", "base: [b.yaml, c.yaml]")
    assert names(compose(path)) == ["a.yaml", "b.yaml", "a.yaml", "c.yaml", "d.yaml"]


def test_bases_are_relative_to_the_file_that_names_them(write, monkeypatch, tmp_path):
    write("common/a.yaml", "value: a")
    write("common/b.yaml", "base: a.yaml")
    path = write("studies/c.yaml", "base: ../common/b.yaml")
    monkeypatch.chdir(tmp_path)  # not to where the command is run
    assert names(compose(path)) == ["a.yaml", "b.yaml", "c.yaml"]
    assert names(compose("studies/c.yaml")) == ["a.yaml", "b.yaml", "c.yaml"]


def test_file_that_builds_on_itself_is_refused(write):
    write("a.yaml", "base: b.yaml")
    path = write("b.yaml", "base: a.yaml")
    assert "builds on itself" in error_of(path)


# Arms

STUDY = "base: base.yaml\nvalue: shared\narms:\n  first: {value: 1}\n  second: {value: 2, other: 3}\n  third:\n"


@pytest.fixture
def study(write):
    write("base.yaml", "value: base")
    return write("study.yaml", STUDY)


def test_arm_comes_last_and_says_its_name(study):
    parts = compose(study, "second")
    assert names(parts) == ["base.yaml", "study.yaml", "study.yaml, arm second"]
    assert [content for _, content in parts] == [
        {"value": "base"},
        {"value": "shared"},
        {"arm": "second", "value": 2, "other": 3},
    ]


def test_first_arm_is_taken_if_none_is_named(study):
    assert compose(study) == compose(study, "first")


def test_arm_may_change_nothing(study):
    assert compose(study, "third")[-1][1] == {"arm": "third"}


def test_unknown_arm_is_told_the_known_ones(study):
    message = error_of(study, "fourth")
    assert "'fourth'" in message and "first, second, third" in message and str(study) in message


def test_arms_may_be_named_by_numbers(write):
    path = write("study.yaml", "arms:\n  1: {value: one}\n  0.5: {value: half}\n")
    assert compose(path)[-1][1] == {"arm": "1", "value": "one"}
    assert compose(path, "0.5")[-1][1] == {"arm": "0.5", "value": "half"}
    assert "it has 1, 0.5" in error_of(path, "2")


def test_file_without_arms_has_those_of_its_base(write, study):
    """A smaller version of a study is still that study."""
    path = write("small.yaml", "base: study.yaml\nsteps: 10")
    assert names(compose(path, "second")) == ["base.yaml", "study.yaml", "small.yaml", "small.yaml, arm second"]
    assert compose(path, "second")[-1][1] == {"arm": "second", "value": 2, "other": 3}
    assert "first, second, third" in error_of(path, "fourth")


def test_arms_of_a_base_give_way_to_arms_of_its_own(write, study):
    path = write("other.yaml", "base: study.yaml\narms: {mine: {value: 4}}")
    assert [content for _, content in compose(path)] == [
        {"value": "base"},
        {"value": "shared"},
        {},
        {"arm": "mine", "value": 4},
    ]
    assert "it has mine" in error_of(path, "first")


@pytest.mark.parametrize("arms", ["[]", "{}", "causal", "", "[causal]"])
def test_arms_that_name_none_are_refused(write, arms):
    assert "names no arm" in error_of(write("study.yaml", f"arms: {arms}"))


def test_arm_without_keys_is_named(write):
    assert "arm causal must hold keys" in error_of(write("study.yaml", "arms: {causal: Causal}"))


def test_config_of_a_run_knows_its_arm(write):
    """`fit` writes the arm into config.yaml, which has no `arms`."""
    path = write("config.yaml", "arm: second\nvalue: 2")
    assert compose(path) == compose(path, "second") == [(str(path), {"arm": "second", "value": 2})]
    assert "it has second" in error_of(path, "first")


def test_arm_is_no_matter_to_a_file_without_arms(write):
    """It may be that of another file of the same run."""
    assert names(compose(write("more.yaml", "value: 1"), "second")) == ["more.yaml"]


# Files that are none


def test_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.yaml") in error_of(tmp_path / "none.yaml")
    assert str(tmp_path) in error_of(tmp_path)


def test_missing_base_is_named(write, tmp_path):
    assert str(tmp_path / "none.yaml") in error_of(write("run.yaml", "base: none.yaml"))


@pytest.mark.parametrize("content", ["model: {size: nano", "a: b: c", "\tmodel:", "- [", "'"])
def test_file_that_is_no_yaml_is_named(write, content):
    path = write("run.yaml", content)
    assert f"{path} is not YAML" in error_of(path)


def test_file_of_bytes_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(bytes(range(256)))
    assert str(path) in error_of(path)


@pytest.mark.parametrize("content", ["", "# nothing", "- a\n- b", "text", "3"])
def test_file_without_keys_is_named(write, content):
    path = write("run.yaml", content)
    assert f"{path} must hold keys and values" in error_of(path)


def test_file_is_read_as_utf_8(write):
    path = write("run.yaml", yaml.safe_dump({"prompt": "ein rötlicher Kreis"}, allow_unicode=True))
    assert compose(path)[0][1] == {"prompt": "ein rötlicher Kreis"}


# Keys that stand twice


@pytest.mark.parametrize(
    ("content", "key", "line", "first"),
    [
        ("a: 1\nb: 2\na: 3", "a", 3, 1),
        ("arms:\n  a: {model: {mask: Causal}}\n  b: {}\n  a: {}", "a", 4, 2),
        ("arms:\n  1: {}\n  '1': {x: 2}", "1", 3, 2),  # names of arms are text
        ("list:\n  - x: 1\n  - {x: 1,\n     x: 2}", "x", 4, 3),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 1\n  y: 2", "y", 5, 4),
    ],
)
def test_key_that_stands_twice_is_named_with_its_lines(write, content, key, line, first):
    path = write("study.yaml", content)
    assert error_of(path) == f"{path}, line {line}: the key '{key}' is there already, in line {first}"


def test_key_that_stands_twice_in_a_base_is_named_with_that_file(write):
    base = write("base.yaml", "a: 1\na: 2")
    assert str(base) in error_of(write("run.yaml", "base: base.yaml"))


@pytest.mark.parametrize(
    "content",
    [
        "a: {x: 1}\nb: {x: 1}",
        "- &a {x: 1}\n- {<<: *a, x: 2}\n- {<<: *a}",  # what is merged in may be changed
        "a: &a [1, *a]",  # it goes round
        "a: [1, 1]\nb: x\nx: b",
    ],
)
def test_what_is_no_such_key_is_read(write, content):
    content = f"top:\n  - {content}" if content.startswith("-") else content
    path = write("run.yaml", content.replace("\n- ", "\n  - "))
    assert repr(read(path)) == repr(yaml.safe_load(path.read_text()))  # in words, since one goes round


def test_every_config_has_each_key_once():
    for path in Path(__file__).parents[1].glob("configs/*.yaml"):
        assert read(path)


# What is asked of the arms


def test_study_section_is_no_part_of_a_run(write):
    path = write("study.yaml", "value: 1\nstudy: {metrics: [KID]}\narms: {a: {}}")
    assert [content for _, content in compose(path)] == [{"value": 1}, {"arm": "a"}]


def test_study_section_of_a_file_wins_over_that_of_its_base(write):
    write("a.yaml", "study: {metrics: [KID], num_examples: 3}")
    write("b.yaml", "base: a.yaml")
    path = write("c.yaml", "base: [b.yaml]\nstudy: {metrics: [FID], table: 5}")
    assert study_section(path) == {"metrics": ["FID"], "num_examples": 3, "table": 5}
    assert study_section(write("d.yaml", "value: 1")) == {}


@pytest.mark.parametrize("content", ["study: [1]", "study: text", "study: 3"])
def test_study_section_without_keys_is_named(write, content):
    path = write("run.yaml", content)
    with pytest.raises(InputError, match="`study` must hold keys and values") as caught:
        study_section(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("base", ["3", "{a: b}", "[a.yaml, 3]", ""])
def test_base_that_is_no_name_is_refused(write, base):
    path = write("run.yaml", f"base: {base}")
    assert error_of(path) == f"{path}: `base` must be the name of a file, or a list of them"


def test_classes_that_have_moved_are_found(tmp_path):
    """As in the config.yaml of a run of version 0.1."""
    old = ("lit_transfusion.data.sources.Shapes", "lit_transfusion.data.sources.shape_edits.ShapeEdits")
    new = ["lit_transfusion.shapes.source.Shapes", "lit_transfusion.shapes.edits.ShapeEdits"]
    (tmp_path / "config.yaml").write_text(f"a: {old[0]}\nb: {{class_path: {old[1]}}}\n")
    content = read(tmp_path / "config.yaml")
    assert [content["a"], content["b"]["class_path"]] == new
