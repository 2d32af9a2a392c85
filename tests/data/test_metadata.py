"""Metadata tables from people and spreadsheets."""

import csv
import io

import pytest

from lit_transfusion.data.sources.metadata import find_metadata, rows
from lit_transfusion.errors import InputError

RED = "red, all over"
EXPECTED = [{"file_name": "a.png", "caption": RED}, {"file_name": "b.png", "caption": 'a 5" disk; "b"'}]


def table(folder, content, name="metadata.csv"):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def texts_of(file):
    return [{name: value.strip() for name, value in row.items()} for _, row in rows(file)]


def written(dialect="excel", **options):
    buffer = io.StringIO()
    writer = csv.writer(buffer, dialect, **options)
    writer.writerows([["file_name", "caption"], *(row.values() for row in EXPECTED)])
    return buffer.getvalue()


SECOND = '"a 5"" disk; ""b"""'
WAYS = {
    "a space after each comma": f'file_name, caption\na.png, "{RED}"\nb.png, {SECOND}\n',
    "spaces around each comma": f'file_name , caption \n"a.png" ,  "{RED}"  \nb.png ,{SECOND} \n',
    "as csv writes it": written(),
    "all in quotes": written(quoting=csv.QUOTE_ALL),
    "semicolons": written(delimiter=";"),
    "tabs": written(delimiter="\t"),
    "bars": written(delimiter="|"),
    "excel with its own first line": "sep=;\r\n" + written(delimiter=";"),
    "lines that end at LF": written(lineterminator="\n"),
    "a byte order mark": "\ufeff" + written(),
    "blank lines": written().replace("\r\n", "\r\n\r\n  \r\n"),
    "blank lines before the first": "\r\n\r\n" + written(),
    "rows of separators alone": written() + ",\r\n,,\r\n",
    "empty columns at the end": "".join(f"{line},,\r\n" for line in written().splitlines()),
    "empty columns at the end of rows": written().replace('"""\r\n', '""",, \r\n'),
}


@pytest.mark.parametrize("content", WAYS.values(), ids=WAYS)
def test_ways_to_write_a_table(tmp_path, content):
    assert texts_of(table(tmp_path, content)) == EXPECTED


def test_tsv(tmp_path):
    assert texts_of(table(tmp_path, written(delimiter="\t"), "metadata.tsv")) == EXPECTED


def test_separator_of_the_header_wins_over_those_in_captions(tmp_path):
    file = table(tmp_path, "file_name;caption\na.png;red, green, blue, grey\nb.png;one|two\n")
    assert [row["caption"] for row in texts_of(file)] == ["red, green, blue, grey", "one|two"]


def test_text_over_two_lines_and_line_numbers_of_rows(tmp_path):
    file = table(tmp_path, '\n"file","text"\n\na.png,"one\r\ntwo"\n\nb.png,b\n')
    assert list(rows(file)) == [(4, {"file": "a.png", "text": "one\ntwo"}), (7, {"file": "b.png", "text": "b"})]


def test_invalid_quotes_are_an_error_with_the_first_line_of_the_row(tmp_path):
    for content in ('f,t\na,b\nc,"d\ne\n', 'f,t\na,b\nc,"d" e\n'):
        with pytest.raises(InputError, match=r"metadata\.csv, line 3: broken csv"):
            list(rows(table(tmp_path, content)))


def test_too_many_columns_name_line_columns_and_separator(tmp_path):
    with pytest.raises(InputError) as caught:
        list(rows(table(tmp_path, "file;text\na.png;one; two\n")))
    assert "metadata.csv, line 2: 3 columns but the header has 2 (file, text)" in str(caught.value)
    assert "a semicolon in double quotes" in str(caught.value)


def test_two_columns_of_one_name_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"line 1: .*columns .*caption; rename"):
        list(rows(table(tmp_path, "file,caption,Caption\na.png,a,b\n")))


@pytest.mark.parametrize("name", ["METADATA.CSV", "Metadata.csv", "metadata.TSV"])
def test_name_in_any_case(tmp_path, name):
    file = table(tmp_path, "file\ttext\n", name)
    assert find_metadata(tmp_path, None) == file
