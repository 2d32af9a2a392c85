"""The order in which the files of a run overwrite each other, and errors in them."""

from pathlib import Path

import pytest
import yaml

from lit_transfusion.config.compose import compose, read, read_config
from lit_transfusion.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Write a file in the folder and return its path."""

    def write(name: str, content: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def names(parts):
    """The names of the parts, without their folder."""
    return [path.rpartition("/")[2] for path, _ in parts]


def error_of(path, arm=None) -> str:
    with pytest.raises(InputError) as caught:
        compose(path, arm)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files that build on others


def test_file_without_base(write):
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


def test_base_of_two_files_is_used_twice(write):
    """Before each of the two, so that each file has the same meaning as alone."""
    write("a.yaml", "value: a")
    write("b.yaml", "base: a.yaml")
    write("c.yaml", "base: a.yaml")
    path = write("d.yaml", "base: [b.yaml, c.yaml]")
    assert names(compose(path)) == ["a.yaml", "b.yaml", "a.yaml", "c.yaml", "d.yaml"]


def test_bases_are_relative_to_the_file_that_names_them(write, monkeypatch, tmp_path):
    write("common/a.yaml", "value: a")
    write("common/b.yaml", "base: a.yaml")
    path = write("studies/c.yaml", "base: ../common/b.yaml")
    monkeypatch.chdir(tmp_path)  # not relative to the working directory
    assert names(compose(path)) == ["a.yaml", "b.yaml", "c.yaml"]
    assert names(compose("studies/c.yaml")) == ["a.yaml", "b.yaml", "c.yaml"]


def test_file_that_builds_on_itself_is_an_error(write):
    write("a.yaml", "base: b.yaml")
    path = write("b.yaml", "base: a.yaml")
    assert "builds on itself" in error_of(path)


# Arms

STUDY = "base: base.yaml\nvalue: shared\narms:\n  first: {value: 1}\n  second: {value: 2, other: 3}\n  third:\n"


@pytest.fixture
def study(write):
    write("base.yaml", "value: base")
    return write("study.yaml", STUDY)


def test_arm_comes_last_and_has_its_name(study):
    parts = compose(study, "second")
    assert names(parts) == ["base.yaml", "study.yaml", "study.yaml, arm second"]
    assert [content for _, content in parts] == [
        {"value": "base"},
        {"value": "shared"},
        {"arm": "second", "value": 2, "other": 3},
    ]


def test_first_arm_is_taken_if_none_is_named(study):
    assert compose(study) == compose(study, "first")


def test_arm_can_be_empty(study):
    assert compose(study, "third")[-1][1] == {"arm": "third"}


def test_error_for_unknown_arm_lists_the_known_ones(study):
    message = error_of(study, "fourth")
    assert "'fourth'" in message and "first, second, third" in message and str(study) in message


def test_arms_can_have_numbers_as_names(write):
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


def test_arms_of_a_file_replace_those_of_its_base(write, study):
    path = write("other.yaml", "base: study.yaml\narms: {mine: {value: 4}}")
    assert [content for _, content in compose(path)] == [
        {"value": "base"},
        {"value": "shared"},
        {},
        {"arm": "mine", "value": 4},
    ]
    assert "it has mine" in error_of(path, "first")


@pytest.mark.parametrize("arms", ["[]", "{}", "causal", "", "[causal]"])
def test_empty_arms_are_an_error(write, arms):
    message = error_of(write("study.yaml", f"arms: {arms}"))
    assert "study.yaml" in message and "`arms`" in message and "use `arms: {NAME:" in message


def test_arm_without_keys_is_an_error(write):
    assert "arm causal must contain keys" in error_of(write("study.yaml", "arms: {causal: Causal}"))


def test_config_of_a_run_has_its_arm(write):
    """`fit` writes the arm into config.yaml, which has no `arms`."""
    path = write("config.yaml", "arm: second\nvalue: 2")
    assert compose(path) == compose(path, "second") == [(str(path), {"arm": "second", "value": 2})]
    assert "it has second" in error_of(path, "first")


def test_file_without_arms_accepts_any_arm(write):
    """The arm can be that of another file of the same run."""
    assert names(compose(write("more.yaml", "value: 1"), "second")) == ["more.yaml"]


# Invalid files


def test_missing_file_is_an_error(tmp_path):
    assert str(tmp_path / "none.yaml") in error_of(tmp_path / "none.yaml")
    assert str(tmp_path) in error_of(tmp_path)


def test_missing_base_is_an_error(write, tmp_path):
    assert str(tmp_path / "none.yaml") in error_of(write("run.yaml", "base: none.yaml"))


@pytest.mark.parametrize("content", ["model: {size: nano", "a: b: c", "\tmodel:", "- [", "'"])
def test_invalid_yaml_is_an_error(write, content):
    path = write("run.yaml", content)
    assert f"{path} is not valid YAML" in error_of(path)


def test_binary_file_is_an_error(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(bytes(range(256)))
    assert str(path) in error_of(path)


@pytest.mark.parametrize("content", ["", "# nothing", "- a\n- b", "text", "3"])
def test_file_without_keys_is_an_error(write, content):
    path = write("run.yaml", content)
    assert f"{path} must contain keys and values" in error_of(path)


def test_file_is_read_as_utf_8(write):
    path = write("run.yaml", yaml.safe_dump({"prompt": "ein rötlicher Kreis"}, allow_unicode=True))
    assert compose(path)[0][1] == {"prompt": "ein rötlicher Kreis"}


# Duplicate keys


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
def test_error_for_duplicate_key_has_both_lines(write, content, key, line, first):
    path = write("study.yaml", content)
    message = error_of(path)
    assert f"{path}, line {line}: " in message and f"'{key}'" in message and f"in line {first};" in message


def test_error_for_duplicate_key_names_the_file(write):
    base = write("base.yaml", "a: 1\na: 2")
    assert str(base) in error_of(write("run.yaml", "base: base.yaml"))


@pytest.mark.parametrize(
    "content",
    [
        "a: {x: 1}\nb: {x: 1}",
        "- &a {x: 1}\n- {<<: *a, x: 2}\n- {<<: *a}",  # a merged key can be overwritten
        "a: &a [1, *a]",  # contains itself
        "a: [1, 1]\nb: x\nx: b",
    ],
)
def test_keys_that_are_not_duplicates_are_read(write, content):
    content = f"top:\n  - {content}" if content.startswith("-") else content
    path = write("run.yaml", content.replace("\n- ", "\n  - "))
    assert repr(read(path)) == repr(yaml.safe_load(path.read_text()))  # compared as text, since one contains itself


def test_every_config_has_each_key_once():
    paths = list((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert paths and all(read(path) for path in paths)


# The study section


def test_study_section_is_not_part_of_a_run(write):
    path = write("study.yaml", "value: 1\nstudy: {metrics: [KID]}\narms: {a: {}}")
    assert [content for _, content in compose(path)] == [{"value": 1}, {"arm": "a"}]


def test_study_section_of_a_file_wins_over_that_of_its_base(write):
    write("a.yaml", "study: {metrics: [KID], num_examples: 3}")
    write("b.yaml", "base: a.yaml")
    path = write("c.yaml", "base: [b.yaml]\nstudy: {metrics: [FID], table: 5}")
    assert read_config(path).study == {"metrics": ["FID"], "num_examples": 3, "table": 5}
    assert read_config(write("d.yaml", "value: 1")).study == {}


@pytest.mark.parametrize("content", ["study: [1]", "study: text", "study: 3"])
def test_study_section_without_keys_is_an_error(write, content):
    path = write("run.yaml", content)
    with pytest.raises(InputError, match="`study` must contain keys and values") as caught:
        read_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("base", ["3", "{a: b}", "[a.yaml, 3]", ""])
def test_base_that_is_not_a_name_is_an_error(write, base):
    path = write("run.yaml", f"base: {base}")
    assert f"{path}: `base` must be the name of a file or a list" in error_of(path)


def test_classes_that_have_moved_are_found(tmp_path):
    """The config.yaml of a run of version 0.1 has the old paths."""
    old = ("lit_transfusion.data.sources.Shapes", "lit_transfusion.data.sources.shape_edits.ShapeEdits")
    new = ["lit_transfusion.shapes.source.Shapes", "lit_transfusion.shapes.edits.ShapeEdits"]
    (tmp_path / "config.yaml").write_text(f"a: {old[0]}\nb: {{class_path: {old[1]}}}\n")
    content = read(tmp_path / "config.yaml")
    assert [content["a"], content["b"]["class_path"]] == new
