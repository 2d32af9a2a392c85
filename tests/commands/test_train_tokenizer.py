"""`train_tokenizer`: trained on the training split, tested on the held-out one, and never overwrites another."""

import io
import json
import random

import pytest
import sentencepiece
import yaml

from lit_transfusion import cli
from lit_transfusion.commands.train_tokenizer import measure, passages_for, train_tokenizer
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.sources import ImageCaptions, Mix, Shards, TextCorpus
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.latents import Pixels
from lit_transfusion.prepare.command import prepare
from lit_transfusion.shapes.edits import ShapeEdits
from lit_transfusion.shapes.source import Shapes

WORDS = ["a", "red", "circle", "is", "left", "of", "blue", "squares", "and", "2", "34", "567", "über", "groß"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def corpus(folder):
    """Forty texts, each with a letter that no other contains."""
    chance = random.Random(0)
    lines = [
        {"text": chr(0x4E00 + i) + " " + " ".join(chance.choices(WORDS, k=60)) + "\n\n        end"} for i in range(40)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return TextCorpus("texts.jsonl", val_fraction=0.2)


@pytest.fixture
def pictures(make_pictures, folder):
    return make_pictures(folder / "pictures", 10)


def quiet(*_):
    """A progress callback that does nothing."""


def error_of(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        train_tokenizer(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What it is trained on


def test_only_the_training_split_of_each_source_is_read(corpus, pictures):
    prepare([str(pictures)], "shards", image_size=8, num_workers=0)
    sources = [ImageCaptions("pictures", 8, val_fraction=0.6), Shards("shards", 8, val_fraction=0.6), corpus]
    for source in sources:
        examples = {part: source.split(part) for part in ("train", "val")}
        texts = {
            part: {text for i in range(len(half)) for text in getattr(half[i], "captions", None) or (half[i].text,)}
            for part, half in examples.items()
        }
        assert len(texts["val"]) > 3 and not texts["train"] & texts["val"]
        assert set(passages_for(examples["train"], 10**6, quiet)) == texts["train"]
    assert len(set(passages_for(ShapeEdits(16).split("train"), 10**6, quiet))) > 50


@pytest.mark.parametrize("characters", [1, 500, 2000])
def test_only_a_fair_sample_of_a_large_source_is_read(folder, characters, monkeypatch):
    lines = [f"{number:03d} red squares" for number in range(400)]  # 15 characters each
    (folder / "texts.txt").write_text("\n\n".join(lines))
    corpus = TextCorpus("texts.txt", documents="block", val_fraction=0.0)
    monkeypatch.setattr(TextCorpus, "captions", None)  # its sample is smaller
    texts = passages_for(corpus, characters, quiet)
    assert characters <= sum(map(len, texts)) < characters + 20
    captioned = Shapes(scenes=["single"])
    captions = passages_for(captioned, characters, quiet)
    assert set(captions) <= set(captioned.captions())
    assert sum(map(len, captions)) == pytest.approx(characters, rel=0.1, abs=60)
    assert texts == passages_for(corpus, characters, quiet) and captions == passages_for(captioned, characters, quiet)
    if characters == 2000:  # 118 of 400, evenly from all quarters
        quarters = [sum(100 * i <= int(text[:3]) < 100 * i + 100 for text in texts) for i in range(4)]
        assert all(15 <= count <= 45 for count in quarters)


def test_long_caption_is_used(make_pictures, folder):
    """SentencePiece drops texts over 4 kB."""
    make_pictures(folder / "pictures", 2)
    long = " ".join(f"word{i}" for i in range(2000))
    (folder / "pictures" / "0.txt").write_text(long)
    passages = passages_for(ImageCaptions("pictures", 8), 10**6, quiet)
    assert max(len(passage.encode()) for passage in passages) <= 4000 and long in "".join(passages)


# The tokenizer and the report


def test_tokenizer_is_like_llamas(corpus):
    train_tokenizer(corpus, 600, "tokenizer.model")
    tokenizer = Tokenizer.from_file("tokenizer.model")
    assert tokenizer.boi <= 600 and (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert len(tokenizer.encode("circle")) == 1
    pieces = sentencepiece.SentencePieceProcessor(model_file="tokenizer.model")
    assert [piece.strip("▁") for piece in pieces.encode("34567", out_type=str) if piece != "▁"] == list("34567")
    for text in ("  two  spaces\n\tand a line\n", "日本 ﬁ ½"):  # spaces and lines of a corpus matter
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a        a")) < 5  # the indentation of the texts


def test_run_trains_the_same_tokenizer_on_the_same_amount(corpus, folder):
    data = TransfusionData(corpus, Pixels(), image_size=64, vocab_size=600)
    train_tokenizer(corpus, 600, "tokenizer.model")
    assert data.tokenizer.model == (folder / "tokenizer.model").read_bytes()


def test_pieces_cover_the_training_split_and_not_the_held_out_one(corpus):
    for source in (corpus, Mix({"text": corpus})):
        train_tokenizer(source, 400, "tokenizer.model", character_coverage=1.0, overwrite=True)
        tokenizer = Tokenizer.from_file("tokenizer.model")
        for part, expected in (("train", False), ("val", True)):
            examples = corpus.split(part)
            letters = [examples[i].text[0] for i in range(len(examples))]
            assert len(letters) > 3
            assert all(any(map(tokenizer.is_byte, tokenizer.encode(letter))) is expected for letter in letters)


def test_rare_letters_are_encoded_as_bytes(folder):
    (folder / "texts.txt").write_text("\n\n".join(["a red circle"] * 500 + ["日 a red circle"]))
    corpus = TextCorpus("texts.txt", documents="block", val_fraction=0.0)
    for coverage, bytes_of_it in ((1.0, 0), (0.999, 3)):
        train_tokenizer(corpus, 300, "tokenizer.model", character_coverage=coverage, overwrite=True)
        tokenizer = Tokenizer.from_file("tokenizer.model")
        assert sum(map(tokenizer.is_byte, tokenizer.encode("日"))) == bytes_of_it
        assert not any(map(tokenizer.is_byte, (*tokenizer.encode("a red"), tokenizer.boi, tokenizer.eoi)))
        assert tokenizer.decode(tokenizer.encode("日")) == "日"


def test_report_equals_a_manual_count(folder):
    (folder / "held_out.txt").write_text("abab 日")  # 8 bytes, 2 words
    tokenizer = Tokenizer.train(["ab"] * 50, 262, verbatim=True)  # bytes, controls and ▁ a b: ab does not fit
    found = measure(tokenizer, TextCorpus("held_out.txt", val_fraction=0.0), quiet)  # ▁ a b a b ▁ and three bytes
    assert found == pytest.approx((8 / 9, 9 / 2, 3 / 9))


def test_report_has_a_row_for_each_source(corpus, capsys):
    sources = {"text": corpus, "shapes": Shapes(scenes=["single"]), "all": TextCorpus("texts.jsonl", val_fraction=0)}
    train_tokenizer(Mix(sources), 400, "new/tokenizer.model")
    output = capsys.readouterr()
    first, *table, last = output.out.splitlines()
    assert first == "new/tokenizer.model: 400 pieces"
    rows = {cells[1].strip(): cells[2:5] for line in table if len(cells := line.split("│")) > 4}
    assert rows.keys() == {"text", "shapes", "all"}
    assert "nothing is held out" in rows["all"][0]
    assert float(rows["shapes"][1]) < float(rows["text"][1])
    assert rows["shapes"][2].strip() == "0.00 %" != rows["text"][2].strip()  # of a letter in each text
    assert last == "train with --data.tokenizer_model new/tokenizer.model"
    assert "characters" in output.err


def test_fewer_pieces_than_requested_are_reported(corpus, capsys):
    train_tokenizer(corpus, 5000, "tokenizer.model")
    assert "pieces (not 5000: " in capsys.readouterr().out


# The file


def test_equal_tokenizer_is_kept_and_another_is_an_error(corpus, folder):
    train_tokenizer(corpus, 340, "tokenizer.model")
    file = folder / "tokenizer.model"
    before = file.stat().st_mtime_ns, file.read_bytes()
    train_tokenizer(corpus, 340, "tokenizer.model")
    assert "another tokenizer" in (message := error_of(corpus, 350, "tokenizer.model")) and "--overwrite" in message
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    train_tokenizer(corpus, 350, "tokenizer.model", overwrite=True)
    assert Tokenizer.from_file("tokenizer.model").boi == 350


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 259}, "vocab_size 259 "),
        ({"characters": 0}, "characters 0 "),
        ({"character_coverage": 0.5}, "character_coverage 0.5 "),
        ({"output": "."}, "--output . is a folder"),
        ({"output": "texts.jsonl"}, "--output texts.jsonl exists"),
        ({"output": "texts.jsonl/t.model"}, "--output texts.jsonl/t.model cannot be written"),
        (
            {"vocab_size": 262, "character_coverage": 1.0},
            "no tokenizer with vocab_size 262 could be trained on these texts (Vocabulary size is smaller",
        ),
    ],
)
def test_invalid_options(corpus, folder, options, message):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert message in error_of(corpus, **{"vocab_size": 300, "output": "tokenizer.model"} | options)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# The command


SINGLE = {"class_path": "Shapes", "init_args": {"scenes": ["single"]}}


@pytest.fixture
def base(folder):
    """Write the base of the configs of runs."""
    data = {"vocab_size": 320, "image_size": 8, "source": SINGLE, "batch_size": 3}
    (folder / "base.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 7}, "data": data}))


def test_config_of_a_run_sets_the_source(corpus, base, folder):
    """The config includes its base, and the command line overrides it."""
    text = {"class_path": "TextCorpus", "init_args": {"val_fraction": 0.2}}
    mixed = {"class_path": "Mix", "init_args": {"sources": {"text": text, "pairs": SINGLE}}}
    (folder / "run.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "data": {"source": mixed}}))
    path = "--source.init_args.sources.text.init_args.path"
    cli.main(["train_tokenizer", "--config", "run.yaml", path, "texts.jsonl", "--output", "a.model"])
    train_tokenizer(Mix({"text": corpus, "pairs": Shapes(scenes=["single"])}), 320, "b.model")
    assert (folder / "a.model").read_bytes() == (folder / "b.model").read_bytes()


def test_source_has_the_image_size_of_the_run(pictures, base, folder):
    """With another size, Shards raise an error."""
    prepare([str(pictures)], "shards", image_size=8, num_workers=0)
    shards = {"source": {"class_path": "Shards", "init_args": {"path": "shards"}}}
    (folder / "run.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "data": shards}))
    cli.main(["train_tokenizer", "--config", "run.yaml", "--output", "tokenizer.model"])
    assert Tokenizer.from_file("tokenizer.model").encode("picture")


def test_options_of_a_fit_are_accepted(pictures, base, folder):
    """In any order, and they override the file."""
    prepare([str(pictures)], "shards", image_size=16, num_workers=0)  # base.yaml says 8
    of_a_fit = ["--data.image_size", "16", "--data.source=Shards", "--data.source.path", "shards"]
    own = ["--source", "Shards", "--source.path", "shards", "--source.image_size=16"]
    cli.main(["train_tokenizer", "--config", "base.yaml", *of_a_fit, "--data.vocab_size=290", "--output", "a.model"])
    cli.main(["train_tokenizer", *own, "--vocab_size", "290", "--output", "b.model"])
    assert (folder / "a.model").read_bytes() == (folder / "b.model").read_bytes()


def test_options_of_the_command_can_be_in_a_file(folder):
    (folder / "own.yaml").write_text(yaml.safe_dump({"source": SINGLE, "vocab_size": 300, "output": "own.model"}))
    cli.main(["train_tokenizer", "--config", "own.yaml"])
    assert Tokenizer.from_file("own.model").boi == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "none.yaml not found"),
        (["--config", "empty.yaml"], "required: source"),
        (["--config", "wrong.yaml"], "wrong.yaml: source: there is no class Photos; known: "),
        (["--source", "Photos"], "there is no class Photos; known: "),
        (["--source", "TextCorpus"], "TextCorpus has no path"),
        (["--source", "Mix", "--source.sources.text", "TextCorpus"], "TextCorpus has no path"),
        (["--source", "Mix"], "Mix has no sources"),
    ],
)
def test_invalid_source_is_a_one_line_error(folder, arguments, message, capsys):
    (folder / "empty.yaml").write_text("data: {batch_size: 3}")
    (folder / "wrong.yaml").write_text("data: {source: {class_path: Photos}}")
    with pytest.raises(SystemExit) as caught:
        cli.main(["train_tokenizer", *arguments, "--vocab_size", "300", "--output", "tokenizer.model"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


# Llama's own


def test_model_trained_like_llama_2s_is_accepted(folder):
    """It has the training options recorded in Llama 2's tokenizer.model, and no image markers."""
    chance, model = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(chance.choices(WORDS, k=20)) for _ in range(200)]),
        model_writer=model,
        **dict(model_type="bpe", vocab_size=330, normalization_rule_name="identity", remove_extra_whitespaces=False),
        **dict(add_dummy_prefix=True, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True),
        **dict(character_coverage=0.99995, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, unk_surface=" \u2047 "),
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer.from_file("tokenizer.model")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.boi, tokenizer.eoi, tokenizer.vocab_size) == (1, 2, 330, 331, 332)
    text = "a red circle,  2 \n\tspaces 日本 </s> <s>"
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos, tokenizer.eos, 0} & set(ids) and max(ids) < tokenizer.boi
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.boi, tokenizer.eos, tokenizer.eoi, tokenizer.eos]) == text
    assert sum(map(tokenizer.is_byte, ids)) >= 6  # of 日本
