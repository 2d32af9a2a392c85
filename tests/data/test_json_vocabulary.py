"""A tokenizer.json as the tokenizer of a run: against the tokenizers library itself, and its errors."""

import json

import pytest

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a red circle", "two blue squares", "a grüner Kreis 日本 🙂", "<|end|>", "", "  two\n lines "]
END = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "lstrip": False}}


@pytest.fixture
def library():
    """Byte-level BPE, as that of SmolLM2, with a token that was added later."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    ends = ["<|begin|>", "<|end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=ends, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens(["squares"])
    return made


@pytest.fixture
def folder(library, tmp_path):
    library.enable_truncation(3)  # settings that a model may come with, and that a data set must not get
    library.enable_padding(length=20)
    library.save(str(tmp_path / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(END))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_the_library(library, folder, text):
    tokenizer = Tokenizer.from_file(str(folder))
    ids = tokenizer.encode(text)
    if text != "<|end|>":
        assert list(ids) == library.encode(text).ids
    assert tokenizer.eos not in ids  # its name in a caption does not end the document
    assert tokenizer.decode((tokenizer.bos, *ids, tokenizer.boi, tokenizer.eoi, tokenizer.eos)) == text


def test_markers_come_after_all_ids(library, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.boi == library.get_vocab_size() == library.token_to_id("squares") + 1
    assert (tokenizer.eoi, tokenizer.vocab_size) == (tokenizer.boi + 1, tokenizer.boi + 2)
    assert (tokenizer.bos, tokenizer.eos) == (0, 1)
    parts = tokenizer.encode("日")
    assert len(parts) > 1 and all(map(tokenizer.is_byte, parts)) and not any(map(tokenizer.is_byte, (0, tokenizer.boi)))


def test_saved_files_are_the_same_tokenizer(folder, tmp_path):
    tokenizer = Tokenizer.from_file(str(folder))
    assert Tokenizer(tokenizer.model).encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])
    other = tmp_path / "other"
    other.mkdir()
    Tokenizer.train(TEXTS, 300).save(other)
    assert tokenizer.save(other) == other / "tokenizer.json"
    assert sorted(path.name for path in other.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert Tokenizer.from_file(str(other)).model == tokenizer.model
    assert Tokenizer.train(TEXTS, 300).save(other) == other / "tokenizer.model"
    assert Tokenizer.from_file(str(other)).model == Tokenizer.train(TEXTS, 300).model


@pytest.mark.parametrize(
    ("file", "content", "ends"),
    [
        ("special_tokens_map.json", END, (0, 1)),
        ("config.json", {"bos_token_id": 1, "eos_token_id": [0, 1]}, (1, 0)),
        ("config.json", {"bos_token_id": 1, "eos_token_id": 1}, (1, 1)),
    ],
)
def test_ends_come_from_any_of_the_files(folder, file, content, ends):
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    (folder / file).write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(folder))
    assert (tokenizer.bos, tokenizer.eos) == ends


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer_config.json",
            '{"eos_token": "<|end|>"}',
            r'has no BOS token: .*"bos_token": "TOKEN".*config\.json',
        ),
        ("tokenizer_config.json", '{"bos_token": "<|end|>"}', r"has no EOS token"),
        ("tokenizer_config.json", '{"bos_token": "<s>"}', r"tokenizer_config\.json: the BOS token '<s>' is not in"),
        ("tokenizer_config.json", '{"bos_token_id": 999}', r"the BOS token 999 is not in tokenizer\.json"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer.json", "[]", r"tokenizer\.json contains no mapping"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer\.json of the tokenizers library \(.*use another"),
    ],
)
def test_files_that_cannot_be_used_are_errors(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.from_file(str(folder))
    assert "\n" not in str(error.value)


def test_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"contains no tokenizer\.json and no tokenizer\.model; use a folder"):
        Tokenizer.from_file(str(tmp_path))
