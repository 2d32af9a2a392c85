"""Files of prompts, valid and invalid."""

import pytest

from lit_transfusion.commands.prompt_file import Request, read_prompt_file
from lit_transfusion.errors import InputError


def test_a_line_is_a_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  ein Würfel: blau \n")
    assert read_prompt_file(tmp_path / "prompts.txt") == [Request("a red circle"), Request("ein Würfel: blau")]


def test_a_line_of_json_may_have_a_seed(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "seed": 7}\n\n{"prompt": "b"}\n')
    assert read_prompt_file(tmp_path / "prompts.jsonl") == [Request("a", 7), Request("b", None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "prompts "),
        ("empty.txt", b"\n \n", "empty.txt contains no prompts"),
        ("bytes.txt", b"caf\xe9", "bytes.txt is not UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt" "b"}\n', "a.jsonl, line 2 is not valid JSON: Expecting ':' delimiter"),
        ("a.jsonl", b'"a"', '{"prompt": "...", "seed": 0}'),
        ("a.jsonl", b'{"prompt": 3}', "line 1 "),
        ("a.jsonl", b'{"prompt": "a", "sed": 3}', "line 1: unknown key 'sed'"),
        ("a.jsonl", b'{"prompt": "a", "seed": "x"}', "line 1: seed 'x' "),
    ],
)
def test_errors_are_one_line_with_file_and_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_prompt_file(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)
