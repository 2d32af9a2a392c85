"""All text files are read by the same rules for line ends, UTF-8 marks and invalid bytes."""

import io
import json
import logging
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from lit_transfusion.commands.benchmark_file import read_benchmark
from lit_transfusion.commands.prompt_file import read_prompt_file
from lit_transfusion.config.compose import compose
from lit_transfusion.data.sources import EditTriples, ImageCaptions, TextCorpus
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.prepare.readers import open_reader
from lit_transfusion.studies.study import first_comment
from lit_transfusion.text_reader import UnreadableText, decode, read_text, split_lines, stream_lines

NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # str.splitlines ends a line at these
ODD = f"a{NO_LINE_ENDS}b"
PICTURE = io.BytesIO()
Image.new("RGB", (8, 8)).save(PICTURE, "PNG")


def captions_in_text(folder, content):
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    (folder / "a.TXT").write_bytes(content)
    return list(ImageCaptions(str(folder)).captions())


def captions_in_csv(folder, content):
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    bom, text = content[: 3 * content.startswith(b"\xef\xbb\xbf")], content.removeprefix(b"\xef\xbb\xbf")
    rows = [b"a.png," + line + b"\n" for line in text.split(b"\n") if line]
    (folder / "metadata.CSV").write_bytes(bom + b"file,text\n" + b"".join(rows))
    return list(ImageCaptions(str(folder)).captions())


def captions_in_tar(folder, content):
    with tarfile.open(folder / "all.TAR", "w") as tar:
        for name, data in (("a.png", PICTURE.getvalue()), ("a.txt", content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert len(open_reader([str(folder)], None, {})[1]) == 1  # the only file in the folder
    item = open_reader([str(folder / "all.TAR")], None, {})[1][0]
    if not hasattr(item, "captions"):
        raise InputError(f"{item.name}: {item.reason}")
    return list(item.captions)


def prompts(folder, content):
    (folder / "prompts.txt").write_bytes(content)
    return [request.prompt for request in read_prompt_file(str(folder / "prompts.txt"))]


def documents(folder, content):
    (folder / "a.txt").write_bytes(content.replace(b"\n", b"\n\n").replace(b"\r\n\n", b"\r\n\r\n"))
    corpus = TextCorpus(str(folder), documents="block", val_fraction=0)
    return [corpus[i].text.strip("\r\n") for i in range(len(corpus))]


READERS = [captions_in_text, captions_in_csv, captions_in_tar, prompts, documents]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_line_ends_at_lf_or_crlf_and_nowhere_else(tmp_path, read, mark, end):
    content = mark + ODD.encode() + end + "日本".encode() + end
    expected = [" ".join(ODD.split()), "日本"] if read not in (prompts, documents) else [ODD, "日本"]
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("read", "content", "reason"),
    [
        (read, content, reason)
        for read in READERS
        for content, reason in [
            ("one\ntwo\n".encode("utf-16"), "UTF-16"),
            (b"one\0", "NUL"),
            (b"caf\xe9\n", "not UTF-8"),
            (b"one\rtwo\r", "CR"),
        ]
        if read is not documents or reason != "CR"  # a CR is part of a document
    ],
)
def test_file_that_is_not_text_is_an_error_that_names_it(tmp_path, read, content, reason):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    file = {captions_in_text: "a.png", captions_in_csv: "metadata.CSV", captions_in_tar: "all.TAR"}
    # In the middle of a table, UTF-16 is reported as not UTF-8.
    expected = "not UTF-8" if read is captions_in_csv and reason == "UTF-16" else reason
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert file.get(read, {prompts: "prompts.txt", documents: "a.txt"}.get(read)) in str(caught.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
def test_lines_of_json_are_whole(tmp_path, mark):
    """JSON may contain U+2028 and similar characters unescaped."""
    (tmp_path / "a.png").write_bytes(PICTURE.getvalue())
    rows = [{"file": "a.png", "input": "a.png", "output": "a.png", "text": ODD, "instruction": ODD, "prompt": ODD}] * 2
    text = mark + "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    assert ImageCaptions(str(tmp_path)).captions() == [" ".join(ODD.split())]  # equal captions are one
    assert EditTriples(str(tmp_path)).captions() == [" ".join(ODD.split())]
    (tmp_path / "p.JSONL").write_bytes((mark + json.dumps({"prompt": ODD}, ensure_ascii=False) + "\r\n").encode())
    assert [request.prompt for request in read_prompt_file(tmp_path / "p.JSONL")] == [ODD]
    assert TextCorpus(str(tmp_path / "metadata.jsonl"), val_fraction=0)[1].text == ODD


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
def test_benchmarks_and_configs(tmp_path, mark):
    line = json.dumps({"tag": "a", "include": [], "prompt": "x\u2028y"}, ensure_ascii=False)
    (tmp_path / "geneval.jsonl").write_bytes(f"{mark}{line}\r\n{line}\r\n".encode())
    benchmark = read_benchmark(tmp_path / "geneval.jsonl", 1, 0)
    assert [order.prompt for order in benchmark.orders] == ["x\u2028y"] * 2
    whole = {"annotations": [{"image_id": 1, "id": 2, "caption": "x"}]}
    (tmp_path / "coco.json").write_bytes((mark + json.dumps(whole)).encode())
    assert [order.prompt for order in read_benchmark(tmp_path / "coco.json", None, 0).orders] == ["x"]
    (tmp_path / "run.yaml").write_bytes(f"{mark}# one\r\n# two\r\n\r\nmodel: {{size: nano}}\r\n".encode())
    assert compose(tmp_path / "run.yaml")[0][1] == {"model": {"size": "nano"}}
    assert first_comment(tmp_path / "run.yaml") == "one two"


@pytest.mark.parametrize("kind", ["UTF-16", "missing"])
def test_config_that_is_not_text(tmp_path, kind):
    if kind == "UTF-16":
        (tmp_path / "run.yaml").write_bytes("model: {}".encode("utf-16"))
    with pytest.raises(InputError, match=r"run\.yaml (is UTF-16; save it as UTF-8|not found)"):
        compose(tmp_path / "run.yaml")


# Half of a surrogate pair


def test_caption_with_half_of_a_surrogate_pair_is_skipped_counted_and_named(tmp_path, caplog):
    rows = [("a.png", "whole"), ("b.png", "half \ud83d"), ("c.png", "half \ude00")]
    for name, _ in rows:
        (tmp_path / name).write_bytes(PICTURE.getvalue())
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file": n, "text": t}) + "\n" for n, t in rows))
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        source = ImageCaptions(str(tmp_path))
    assert source.captions() == ["whole"]
    assert "2 left out: 2 with a caption that is not UTF-8 (first: b.png)" in caplog.text


def test_instruction_with_half_of_a_surrogate_pair(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(PICTURE.getvalue())
    rows = [{"input": "a.png", "instruction": text, "output": "a.png"} for text in ("darker", "\ud83d", "")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        assert EditTriples(str(tmp_path)).captions() == ["darker"]
    assert "1 with an instruction that is not UTF-8 (first: line 2)" in caplog.text
    assert "1 without an instruction (first: line 3)" in caplog.text


def test_prompt_with_half_of_a_surrogate_pair_names_its_line(tmp_path, tokenizer):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl, line 2: .*half of a surrogate pair"):
        read_prompt_file(tmp_path / "p.jsonl")
    (tmp_path / "coco.json").write_text('{"annotations": [{"image_id": 1, "id": 2, "caption": "\\ud83d"}]}')
    with pytest.raises(InputError, match=r"coco\.json: annotation 0"):
        read_benchmark(tmp_path / "coco.json", None, 0)
    with pytest.raises(InputError, match=r"a \\ud83d.*half of a surrogate pair"):
        tokenizer.encode("a \ud83d")  # from any origin, such as an argument whose bytes are not UTF-8


# The functions


def test_lines_of_a_text():
    assert split_lines("") == [] and split_lines("a") == ["a"] and split_lines("a\n") == ["a"]
    assert split_lines("\na\n\nb") == ["", "a", "", "b"]
    assert decode(b"\xef\xbb\xbfa\r\nb\n") == "a\nb\n" and decode(b"a\r\nb\r\n") == "a\nb\n"
    with pytest.raises(UnreadableText, match="CR"):
        decode(b"a\r\r\n")


def test_error_names_line_or_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(InputError, match=r"a\.txt, line 3 is not UTF-8"):
        list(stream_lines(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=r"prompts is not UTF-8; save it as UTF-8"):
        read_text(tmp_path / "a.txt", "prompts")
    with pytest.raises(InputError, match=r"b\.txt cannot be read: No such file"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        list(stream_lines(tmp_path))


# The whole way


@pytest.mark.slow
def test_chinese_captions_train_with_the_defaults(tmp_path, caplog):
    """6,000 different characters, more than the vocabulary of configs/own_data.yaml, and one broken caption."""
    from lit_transfusion import cli

    chance = random.Random(0)
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(PICTURE.getvalue())
        text = "".join(chance.choices([chr(0x4E00 + i) for i in range(6000)], k=100))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "broken.png").write_bytes(PICTURE.getvalue())
    (tmp_path / "broken.txt").write_bytes("一只猫".encode("utf-16"))
    small = ["--model.size.dim", "32", "--model.size.n_layers", "1", "--model.size.n_heads", "2"]
    small += ["--data.num_workers", "0", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]
    run = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "1"]
    config = Path(__file__).parents[1] / "configs" / "own_data.yaml"
    with caplog.at_level(logging.WARNING, "lit_transfusion"):
        cli.main(["fit", "--config", str(config), "--data.source.init_args.path", str(tmp_path), *small, *run])
    assert "1 with a caption that is UTF-16 (first: broken.png)" in caplog.text
    tokenizer = Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.model"))
    assert 3900 < tokenizer.boi <= 4000
    assert sum(not any(map(tokenizer.is_byte, tokenizer.encode(chr(0x4E00 + i)))) for i in range(6000)) > 1800
