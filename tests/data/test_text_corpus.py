"""TextCorpus: each character is in one part, exactly once, for all kinds of files; and memory stays small."""

import json
import logging
import multiprocessing
import pickle
import resource
import time
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from lit_transfusion.data.sources import TextCorpus, text_files, text_table
from lit_transfusion.data.types import TextExample
from lit_transfusion.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "texts"


@pytest.fixture
def write(folder):
    """Files by name: bytes, text, or the rows of a .jsonl."""

    def write(**files):
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if isinstance(content, list):
                content = "".join(json.dumps(row) + "\n" for row in content)
            path = folder / name.replace("_", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder)

    return write


def texts(source: TextCorpus) -> list[str]:
    """The documents of a source, joined from their parts."""
    documents, parts = [], []
    for example in (source[i] for i in range(len(source))):
        parts.append(example.text)
        if example.complete:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


def all_texts(source: TextCorpus) -> list[str]:
    return texts(source.split("train")) + texts(source.split("val"))


# What a document is


def test_file_is_a_document_to_the_last_space(write):
    files = {"a_txt": " first\n\n\tline \r\n", "b_txt": "second", "c_md": "no text"}
    assert texts(TextCorpus(write(**files), val_fraction=0.0)) == [files["a_txt"], "second"]


def test_blocks_are_divided_by_blank_lines(write):
    path = write(a_txt="one\ntwo\n\n \t\nthree\n\n\n", b_txt="\n\nfour")
    assert texts(TextCorpus(path, documents="block", val_fraction=0.0)) == ["one\ntwo\n", "three\n", "four"]


def test_byte_order_mark_is_not_text(write):
    path = write(a_txt=b"\xef\xbb\xbfx", b_jsonl=b'\xef\xbb\xbf{"text": "y"}')
    assert texts(TextCorpus(path, val_fraction=0.0)) == ["x", "y"]


def test_lines_of_jsonl_and_rows_of_parquet(write, folder):
    path = write(a_jsonl=[{"body": "a\n\nb", "n": 1}, {"body": "é 日本"}])
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "body": ["ü", None, "d\n\ne"]}), folder / "b.parquet")
    source = TextCorpus(path, column="body", val_fraction=0.0)
    assert texts(source) == ["a\n\nb", "é 日本", "ü", "d\n\ne"]
    assert source._table.left_out["empty"][0] == 1


def test_folders_are_searched_and_hidden_ones_are_not(folder):
    for name in ("b/c.txt", "a.txt", ".git/d.txt", "b/.e.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "gone.txt").symlink_to(folder / "nothing")
    assert texts(TextCorpus(str(folder), val_fraction=0.0)) == ["a.txt", "b/c.txt"]
    assert texts(TextCorpus(str(folder / "b" / "c.txt"), val_fraction=0.0)) == ["b/c.txt"]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    "text",
    ["word " * 40, "日" * 40, "x" * 100, "é x" * 30, "a\n" * 60, "ab cd" * 3 + "\n" + "日本" * 20 + "\n"],
    ids=["words", "wide", "narrow", "both", "lines", "long lines"],
)
def test_long_document_is_several_examples_and_no_character_is_lost(write, monkeypatch, text, blocks):
    monkeypatch.setattr(text_files, "MAX_PART", 16)
    source = TextCorpus(write(a_txt=text), documents="block" if blocks else "file", val_fraction=0.0)
    examples = [source[i] for i in range(len(source))]
    assert "".join(example.text for example in examples) == text
    assert [example.complete for example in examples] == [False] * (len(examples) - 1) + [True]
    assert max(len(example.text.encode()) for example in examples) <= 16
    assert len(examples) <= len(text.encode()) / 8 + 1


# What cannot be used


def test_faults_are_left_out_and_counted(write, caplog):
    path = write(
        a_txt=b"caf\xe9",
        b_txt="",
        c_txt=" \n",
        d_txt="good",
        e_jsonl=b'{"text": "fine"}\n{broken\n{"text": ""}\n[1]\n{"text": 3}\n{"other": "x"}\n\xff\n'
        b'{"text": "\\ud83d"}\n\n',
    )
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        source = TextCorpus(path, val_fraction=0.0)
    assert texts(source) == ["good", "fine"]
    counts = {"not UTF-8": 3, "empty": 3, "broken json": 1, "not a json object": 1, "without a text in 'text'": 2}
    assert {reason: count for reason, (count, _) in source._table.left_out.items()} == counts
    (message,) = caplog.messages
    assert "2 documents used, 10 left out" in message and "3 not UTF-8 (first: " in message and "a.txt" in message


def test_block_that_is_not_utf8_leaves_its_neighbours(write):
    source = TextCorpus(write(a_txt=b"one\n\ntw\xff\n\nthree"), documents="block", val_fraction=0.0)
    assert texts(source) == ["one\n", "three"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (None, {}, "no such file or folder: .*texts; set path"),
        ({"a_md": "x"}, {}, r"no texts in .*texts .*\.txt \.jsonl \.parquet"),
        ({"a_txt": ""}, {}, r"none of the documents in .*: 1 empty \(first: .*a\.txt"),
        ({"a_jsonl": [{"body": "x"}]}, {}, r"a\.jsonl: the first line has no field 'text', only body; set column"),
        ({"a_parquet": b"nonsense"}, {}, r"a\.parquet cannot be read"),
        ({"a_txt": "x"}, {"val_fraction": 1.0}, "val_fraction is 1.0; set it to at least 0 and less than 1"),
        ({"a_txt": "x"}, {"documents": "line"}, "documents is 'line'; set it to file or block"),
    ],
)
def test_errors_name_file_option_and_fix(write, folder, files, options, message):
    path = write(**files) if files else str(folder)
    with pytest.raises(InputError, match=message):
        TextCorpus(path, **options)
    assert not tables(folder)


def test_parquet_without_the_column_names_those_it_has(write, folder):
    path = write()
    parquet.write_table(pyarrow.table({"n": [1], "body": ["x"]}), folder / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text', only n, body; set column"):
        TextCorpus(path)
    with pytest.raises(InputError, match=r"b\.parquet: column 'n' contains int .*set column"):
        TextCorpus(path, column="n")


def test_path_must_be_given():
    with pytest.raises(InputError, match="TextCorpus has no path"):
        TextCorpus()


def test_file_that_cannot_be_read_is_named(write, folder):
    path = write(a_txt="x")
    with pytest.raises(InputError, match=r"b\.txt cannot be read: .*remove it"):
        list(text_files.documents_of(folder / "a.txt" / "b.txt", "text", False))
    assert texts(TextCorpus(path)) == ["x"]


def test_files_may_change_during_training(write, folder):
    source = TextCorpus(write(a_txt="some words", b_jsonl=[{"text": "x"}]), val_fraction=0.0)
    (folder / "a.txt").write_text("some")
    (folder / "b.jsonl").unlink()
    assert texts(source) == ["some words", "x"]


# What is held out


def rows(count: int) -> list[dict[str, str]]:
    return [{"text": f"document {i}"} for i in range(count)]


def test_parts_share_nothing_and_miss_nothing(write):
    source = TextCorpus(write(a_jsonl=rows(2000)), val_fraction=0.1)
    train, val = set(texts(source.split("train"))), set(texts(source.split("val")))
    assert train | val == {row["text"] for row in rows(2000)} and not train & val
    assert 150 < len(val) < 250
    assert texts(source) == texts(source.split("train"))


def test_held_out_are_the_same_whatever_else_there_is_and_others_for_another_seed(write):
    first = set(texts(TextCorpus(write(a_jsonl=rows(500)), val_fraction=0.1).split("val")))
    path = write(a_jsonl=rows(700)[::-1])
    second = set(texts(TextCorpus(path, val_fraction=0.1).split("val")))
    assert first < second
    assert set(texts(TextCorpus(path, val_fraction=0.1, seed=1).split("val"))) != second


def test_equal_documents_and_the_parts_of_one_are_in_one_part(write, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_PART", 16)
    long = {f"{i:02d}_txt": f"{i:02d} " * 20 for i in range(20)}
    source = TextCorpus(write(a_jsonl=rows(20) * 3, **long), val_fraction=0.3)
    train, val = texts(source.split("train")), texts(source.split("val"))
    assert not set(train) & set(val) and len(train + val) == 80
    assert all(val.count(text) in (1, 3) for text in val)


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(2, 1e-9, 1), (2, 0.999999, 1), (1, 0.5, 0), (9, 0, 0)])
def test_neither_part_is_empty(write, count, fraction, held_out):
    source = TextCorpus(write(a_jsonl=rows(count)), val_fraction=fraction)
    assert (len(source.split("val")), len(source.split("train"))) == (held_out, count - held_out)


# The table


def tables(folder):
    """The folders of all tables beside the texts."""
    return sorted(folder.glob(".lit_transfusion/texts-*"))


def test_table_is_written_again_only_when_a_file_or_an_option_changes(write, folder, monkeypatch):
    written = []
    monkeypatch.setattr(text_table, "write", lambda *a, write=text_table.write: (written.append(1), write(*a)))
    path = write(a_txt="one\n\ntwo")
    for options in ({}, {}, {"documents": "block"}, {"seed": 1}, {"val_fraction": 0.5}):
        TextCorpus(path, **options)
    assert len(written) == 4
    write(b_txt="three")
    assert len(all_texts(TextCorpus(path))) == 2 and len(written) == 5
    time.sleep(0.01)
    write(b_txt="other")
    assert "other" in all_texts(TextCorpus(path)) and len(written) == 6
    assert all((place / "report.json").exists() for place in tables(folder))


def in_another_process(function, *arguments):
    """Call a function in a process that then ends, because a process keeps the tables that it uses."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_outdated_table_is_deleted_when_another_is_written(write, folder):
    path = write(a_txt="one", b_txt="two")
    in_another_process(TextCorpus, path)
    (before,) = tables(folder)
    unfinished = before.with_name(f"{before.name.rpartition('-')[0]}-0")  # of a killed process
    unfinished.mkdir()
    in_another_process(TextCorpus, str(folder / "a.txt"))
    (other,) = set(tables(folder)) - {before, unfinished}
    write(b_txt="changed")
    TextCorpus(path)
    assert other in tables(folder) and len(tables(folder)) == 2
    assert before not in tables(folder) and unfinished not in tables(folder)


def test_table_in_use_is_not_deleted(write, folder):
    path = write(a_txt="one")
    source = TextCorpus(path)
    write(b_txt="another")
    in_another_process(TextCorpus, path)
    assert len(tables(folder)) == 2
    assert all_texts(source) == ["one"]


def test_corpus_that_cannot_be_written_has_its_table_in_the_cache(write, folder, tmp_path, monkeypatch):
    path = write(a_txt="x")
    (folder / ".lit_transfusion").write_text("")  # a file at the path of the folder prevents it, even for the superuser
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        assert texts(TextCorpus(path)) == ["x"]
    assert len(list(tmp_path.glob("cache/lit_transfusion/*/*/report.json"))) == 1
    (tmp_path / "cache" / "lit_transfusion").rename(tmp_path / "moved")
    (tmp_path / "cache" / "lit_transfusion").write_text("")
    with pytest.raises(InputError, match=r"neither .*\.lit_transfusion nor .*cache.* is writable"):
        TextCorpus(path)


def test_full_disk_is_reported_and_nothing_remains(write, folder):
    """With a limit on the size of files, a write fails like on a full disk."""
    path = write(a_jsonl=rows(500))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(InputError, match=r"texts/\.lit_transfusion/.* cannot be written: File too large"):
            TextCorpus(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not tables(folder)
    assert len(all_texts(TextCorpus(path))) == 500


def test_one_of_several_processes_writes_the_table(write, folder, monkeypatch):
    path, original = write(a_txt="x"), text_table.write
    context = multiprocessing.get_context("fork")
    started, log = context.Barrier(3), folder / "written.log"

    def slow(*arguments):
        with log.open("a") as file:
            file.write("written\n")
        time.sleep(0.3)
        original(*arguments)

    def use():
        started.wait()
        assert texts(TextCorpus(path)) == ["x"]

    monkeypatch.setattr(text_table, "write", slow)
    processes = [context.Process(target=use) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "written\n" and len(tables(folder)) == 1


def test_forked_process_maps_the_table_itself(write):
    source = TextCorpus(write(a_jsonl=rows(300)), val_fraction=0.0)
    assert source[250].text == "document 250"  # mapped by this process
    opened = text_table.opened.cache_info().misses

    def read():
        assert source[7].text == "document 7" and source[299].text == "document 299"
        assert text_table.opened.cache_info().misses == opened + 1

    in_another_process(read)


@pytest.mark.parametrize("index", [-1, 5])
def test_index_out_of_range_ends_an_iteration(write, index):
    source = TextCorpus(write(a_jsonl=rows(5)), val_fraction=0.0)
    with pytest.raises(IndexError):
        source[index]
    assert [example.text for example in source] == [f"document {i}" for i in range(5)]


def test_copy_for_another_process_is_small(write):
    source = TextCorpus(write(a_jsonl=rows(5000)), val_fraction=0.0)
    before = source[17]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000 and pickle.loads(pickled)[17] == before == TextExample("document 17")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_documents(write):
    peaks = []
    for count in (1000, 20_000):
        path = write(a_jsonl=[{"text": f"{i} " * 50} for i in range(count)])
        TextCorpus(path).captions()  # first, for imports and caches
        time.sleep(0.01)
        write(b_txt=str(count))  # a new table
        tracemalloc.start()
        source = TextCorpus(path)
        for index in range(0, len(source), count // 500):
            source[index]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 120_000 and peaks[0] < 4_000_000


# For the tokenizer


def test_short_corpus_is_the_sample(write):
    path = write(a_txt="word " * 1000, b_txt="x" * 2500)
    passages = TextCorpus(path, val_fraction=0.0).captions()
    assert "".join(passages) == "word " * 1000 + "x" * 2500
    assert max(map(len, passages)) <= 1000


def test_sample_of_a_large_corpus_is_spread_over_it(write, monkeypatch):
    monkeypatch.setattr("lit_transfusion.data.sources.text_corpus.SAMPLE", 50_000)
    source = TextCorpus(write(a_jsonl=[{"text": f"{i:04d} " + "x " * 1000} for i in range(1000)]), val_fraction=0.0)
    passages = source.captions()
    assert [int(passage[:4]) for passage in passages] == list(range(0, 1000, 20))
    assert all(900 < len(passage) <= 1000 for passage in passages)
