"""EditTriples: what is read, how it is split, and errors in the folder."""

import json
import logging
import pickle
from itertools import pairwise

import pytest
import torch
from PIL import Image

from lit_transfusion.data.sources.edit_triples import EditTriples
from lit_transfusion.data.types import EditExample, Skipped
from lit_transfusion.errors import InputError

HEADER = "input,instruction,output\n"


def put_pictures(folder, *names):
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (255, 0, number)).save(file)


def put_chains(folder, *chains):
    """Write edits of which each continues the one before: "abc" is a → b and b → c."""
    put_pictures(folder, *{f"{name}.png" for chain in chains for name in chain})
    steps = [pair for chain in chains for pair in pairwise(chain)]
    (folder / "metadata.csv").write_text(HEADER + "".join(f"{a}.png,{a} to {b},{b}.png\n" for a, b in steps))


def error_of(*args, **options):
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        EditTriples(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_example_is_input_instructions_and_output(tmp_path):
    put_pictures(tmp_path, "a.png", "b/c.jpg")
    (tmp_path / "metadata.csv").write_text(HEADER + 'a.png,"make it, say, blue ",b/c.jpg\n')
    source = EditTriples(str(tmp_path), image_size=8, val_fraction=0)
    assert len(source) == 1 and source.images_per_example == 2
    example = source[0]
    assert isinstance(example, EditExample)
    assert example.instructions == ("make it, say, blue",) and source.captions() == ["make it, say, blue"]
    assert example.input_image.shape == example.output_image.shape == (3, 8, 8)
    assert torch.equal(example.input_image[0], torch.ones(8, 8))


def test_jsonl_may_list_several_wordings(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    row = {"input": "a.png", "instructions": ["darker", " ", "make it  darker"], "output": "b.png", "turn": 1}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n")
    assert EditTriples(str(tmp_path))[0].instructions == ("darker", "make it darker")


@pytest.mark.parametrize(
    "columns",
    [
        ("source_img", "instruction", "target_img"),
        ("original_image", "edit_prompt", "edited_image"),
        ("Input_Image", "Instruction", " output_image "),
    ],
)
def test_columns_of_known_data_sets(tmp_path, columns):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "edits.csv").write_text(",".join(columns) + "\na.png,darker,b.png\n")
    assert EditTriples(str(tmp_path), metadata="edits.csv").captions() == ["darker"]


def test_rows_without_an_instruction_are_left_out_with_one_warning(tmp_path, caplog):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(HEADER + "a.png,,b.png\na.png,darker,b.png\nb.png, ,a.png\n")
    with caplog.at_level(logging.WARNING):
        assert EditTriples(str(tmp_path)).captions() == ["darker"]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'metadata.csv'}: 1 edit used, 2 left out: 2 without an instruction (first: line 2)"
    )


@pytest.mark.parametrize("broken", ["a.png", "b.png"])
def test_broken_picture_is_skipped_by_name(tmp_path, broken):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / broken).write_bytes(b"no picture")
    (tmp_path / "metadata.csv").write_text(HEADER + "a.png,darker,b.png\n")
    unknown = "cannot be read: not a picture of a known format"
    assert EditTriples(str(tmp_path))[0] == Skipped(str(tmp_path / broken), unknown)


# How it is split


def pictures_of(source):
    return {name for triple in source._triples for name in (triple.input, triple.output)}


def test_connected_edits_stay_together(tmp_path):
    put_chains(tmp_path, "abc", "de", "fghi", "jb", "kl", "mn")
    source = EditTriples(str(tmp_path), val_fraction=0.4)
    train, val = source.split("train"), source.split("val")
    assert len(train) + len(val) == len(source) == 9 and len(train) and len(val)
    assert not pictures_of(train) & pictures_of(val)
    assert {"a.png", "b.png", "c.png", "j.png"} <= pictures_of(train) or {"a.png", "j.png"} <= pictures_of(val)


@pytest.mark.parametrize("val_fraction", [0.01, 0.99])
def test_neither_part_is_empty(tmp_path, val_fraction):
    put_chains(tmp_path, "ab", "cd", "ef")
    source = EditTriples(str(tmp_path), val_fraction=val_fraction)
    assert len(source.split("train")) and len(source.split("val"))
    assert len(EditTriples(str(tmp_path), val_fraction=0).split("val")) == 0


def test_split_depends_on_names_and_seed(tmp_path):
    put_chains(tmp_path, *[(f"{i}x", f"{i}y") for i in range(30)])
    held_out = [pictures_of(EditTriples(str(tmp_path), val_fraction=0.3, seed=seed).split("val")) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_source_can_be_pickled(tmp_path):
    put_chains(tmp_path, "ab", "cd")
    again = pickle.loads(pickle.dumps(EditTriples(str(tmp_path)).split("train")))
    assert isinstance(again[0], EditExample)


# Errors


def test_folder_and_metadata_must_exist(tmp_path):
    assert error_of().startswith("EditTriples has no path; set path")
    assert error_of(str(tmp_path / "x")).startswith(f"no such folder: {tmp_path / 'x'}; set path")
    assert error_of(str(tmp_path)).startswith("no metadata.csv, metadata.tsv, metadata.jsonl, metadata.parquet in ")
    assert error_of(str(tmp_path), metadata="x.csv").startswith(f"no such file: {tmp_path / 'x.csv'}; set metadata")


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0])
def test_fraction_out_of_range(tmp_path, val_fraction):
    assert f"val_fraction is {val_fraction}" in error_of(str(tmp_path), val_fraction=val_fraction)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "input,instruction\na.png,darker\n", "line 2: no column output (or output_image"),
        ("metadata.csv", "picture,instruction,output\na.png,x,b.png\n", "line 2: no column input (or input_image"),
        ("metadata.csv", "input,text,output\na.png,x,b.png\n", "line 2: no column instruction (or instructions"),
        ("metadata.csv", HEADER + "a.png,darker,b.png\na.png,x,none.png\n", "line 3: the output picture"),
        ("metadata.csv", HEADER + "none.png,x,b.png\n", "line 2: the input picture"),
        ("metadata.csv", HEADER + " ,x,b.png\n", "line 2, column input: the name of the picture is ''"),
        ("metadata.csv", HEADER + "a.png,make it, blue,b.png\n", "line 2: 4 columns but the header has 3"),
        ("metadata.csv", HEADER, "no edit with an instruction"),
        ("metadata.csv", HEADER + "a.png,,b.png\n", "no edit with an instruction"),
        (
            "metadata.jsonl",
            '{"input": 3, "instruction": "x", "output": "b.png"}',
            "line 1, column input: the name of the picture is 3",
        ),
        (
            "metadata.jsonl",
            '{"input": "a.png", "instruction": 3, "output": "b.png"}',
            "line 1, column instruction: [3] is not a text",
        ),
        ("metadata.jsonl", '["a.png", "darker", "b.png"]', "line 1: not a json object"),
        ("metadata.jsonl", '{"input": ', "line 1: broken json"),
    ],
)
def test_error_in_a_metadata_file_names_file_and_line(tmp_path, name, content, message):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_text(content)
    error = error_of(str(tmp_path))
    assert str(tmp_path / name) in error and message in error
