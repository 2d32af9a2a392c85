"""Tokenizer: any text can be encoded and decoded, markers follow the vocabulary, and errors are clear."""

import io
import random
import unicodedata

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError

TEXTS = ["a red circle", "two blue squares, one above the other", "a green cross is left of a red circle"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def raw_model(**options) -> bytes:
    """A SentencePiece model trained without `Tokenizer`."""
    model = io.BytesIO()
    settings = dict(model_type="bpe", vocab_size=40, hard_vocab_limit=False, minloglevel=2) | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **settings)
    return model.getvalue()


def error_of(make, *arguments) -> str:
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        make(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Text and ids


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
@example("日本 👩🏽🚀 <s> </s> <unk> <0x41>")
@settings(max_examples=200, deadline=None)
def test_unseen_characters_come_back_as_they_were(tokenizer, text):
    text = unicodedata.normalize("NFKC", text).replace("▁", "")  # like SentencePiece; ▁ is its sign for a space
    text = " ".join(text.split())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_can_be_written_with_the_vocabulary(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.boi for i in ids)
    assert tokenizer.bos not in ids and tokenizer.eos not in ids  # even if the text spells them
    once = tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode(once)) == once


def test_known_words_take_fewer_tokens_than_letters(tokenizer):
    assert len(tokenizer.encode("a red circle")) < len("a red circle") / 2


def test_markers_of_images_follow_the_vocabulary(tokenizer):
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model).get_piece_size()
    assert (tokenizer.boi, tokenizer.eoi, tokenizer.vocab_size) == (pieces, pieces + 1, pieces + 2)
    assert len({tokenizer.bos, tokenizer.eos, tokenizer.boi, tokenizer.eoi}) == 4


def test_markers_are_left_out_of_decoded_text(tokenizer):
    words = tokenizer.encode("a red circle")
    ids = (tokenizer.bos, *words, tokenizer.boi, tokenizer.pad, tokenizer.eoi, tokenizer.eos)
    assert tokenizer.decode(ids) == "a red circle"


# Training


def test_training_depends_only_on_its_arguments():
    assert Tokenizer.train(TEXTS, 300).model == Tokenizer.train(iter(TEXTS), 300).model
    assert Tokenizer.train(TEXTS, 300).model != Tokenizer.train([*TEXTS, "a yellow square"] * 2, 300).model


def test_vocabulary_is_smaller_where_the_texts_hold_no_more_pieces():
    few = Tokenizer.train(["a red cat"], 512)
    assert 259 < few.vocab_size < 300
    assert few.decode(few.encode("a red cat")) == "a red cat"


@pytest.mark.parametrize("vocab_size", [-1, 0, 3, 259])
def test_vocabulary_too_small_for_bytes_and_letters_is_an_error(vocab_size):
    assert str(vocab_size) in error_of(Tokenizer.train, TEXTS, vocab_size)


@pytest.mark.parametrize("texts", [[], [""], ["\n"]])
def test_no_text_is_an_error(texts):
    assert "no tokenizer with vocab_size 300" in error_of(Tokenizer.train, texts, 300)


# Files


def test_file_gives_the_same_tokenizer(tokenizer, tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(tokenizer.model)
    read = Tokenizer.from_file(str(file))
    assert read.model == tokenizer.model and read.encode("a red circle") == tokenizer.encode("a red circle")


def test_model_with_other_ids_is_accepted(tmp_path):
    """Unknown, BOS and EOS are 0, 1, 2 in Llama 2's tokenizer; others have other ids."""
    file = tmp_path / "tokenizer.model"
    file.write_bytes(raw_model(unk_id=5, bos_id=3, eos_id=4))
    assert (Tokenizer.from_file(str(file)).bos, Tokenizer.from_file(str(file)).eos) == (3, 4)


def test_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.model") in error_of(Tokenizer.from_file, str(tmp_path / "none.model"))
    assert str(tmp_path) in error_of(Tokenizer.from_file, str(tmp_path))


def test_file_that_is_not_a_model_is_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a model")
    assert str(file) in error_of(Tokenizer.from_file, str(file))


@pytest.mark.parametrize("missing", ["bos_id", "eos_id"])
def test_model_without_bos_or_eos_is_an_error(missing):
    assert "BOS" in error_of(Tokenizer, raw_model(**{missing: -1}))


# Texts that SentencePiece's trainer ignores


@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize("length", [4000, 30_000])
def test_long_texts_are_trained_on(verbatim, length):
    """The trainer ignores texts over 4192 bytes."""
    long = " ".join(["abcabcabc", "日本語"] * length)[:length]
    tokenizer = Tokenizer.train([long, "short"], 300, verbatim)
    assert len(tokenizer.encode("abcabcabc")) == 1 and len(tokenizer.encode("日本語")) <= 2
    assert Tokenizer.train(["日本" * 5000], 262 + 5).encode("日本日本")


@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize("reserved", ["▅", "\0"])
def test_texts_with_characters_that_the_trainer_reserves_are_trained_on(verbatim, reserved):
    tokenizer = Tokenizer.train([f"abcabc {reserved}xyxy"] * 5, 300, verbatim)
    assert len(tokenizer.encode("abcabc")) == 1 and len(tokenizer.encode("xyxy")) == 1
    assert tokenizer.decode(tokenizer.encode("a ▅ b")) == "a ▅ b"


def test_texts_that_are_not_unicode_are_skipped_counted_and_named(caplog):
    texts = ["half \ud83d", *TEXTS, "\ude00"]
    assert Tokenizer.train(texts, 300).model == Tokenizer.train(TEXTS, 300).model
    assert "2 texts that are not valid Unicode" in caplog.text and r"(first: 'half \ud83d')" in caplog.text


# Characters


def chinese(count, number=300):
    """Captions with all of `count` characters, in a Zipf distribution as in a language."""
    chance = random.Random(0)
    characters = [chr(0x4E00 + i) for i in range(count)]
    weights = [1 / (i + 1) for i in range(count)]
    captions = ["".join(chance.choices(characters, weights, k=20)) for _ in range(number)]
    return ["".join(characters), *captions]


def is_whole(tokenizer, character):
    return not any(map(tokenizer.is_byte, tokenizer.encode(character)))


def test_all_characters_of_a_small_alphabet_have_pieces():
    tokenizer = Tokenizer.train([*TEXTS, "Ж"], 300)
    assert is_whole(tokenizer, "Ж")


def test_rarest_of_very_many_characters_are_encoded_as_bytes():
    """The rarest 100 of 2,000 characters are less than 1 in 2,000 of all, so 0.9995 excludes them."""
    texts = ["".join(chr(0x4E00 + i) for i in range(1900))] * 200 + ["".join(chr(0x9000 + i) for i in range(100))]
    tokenizer = Tokenizer.train(texts, 4000)
    assert is_whole(tokenizer, chr(0x4E00)) and not is_whole(tokenizer, chr(0x9000 + 99))
    assert is_whole(Tokenizer.train(texts, 4000, character_coverage=1.0), chr(0x9000 + 99))


def test_characters_that_do_not_fit_leave_half_of_the_pieces_for_longer_ones():
    texts = chinese(1000)
    tokenizer = Tokenizer.train(texts, 512)
    assert tokenizer.boi == 512
    whole = [is_whole(tokenizer, chr(0x4E00 + i)) for i in range(1000)]
    assert sum(whole) == (512 - 259) // 2 and all(whole[:60])
    assert len(tokenizer.encode(texts[1])) < 2 * len(texts[1])  # three bytes for each character
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    with pytest.raises(InputError, match="Vocabulary size is smaller"):
        Tokenizer.train(texts, 512, character_coverage=1.0)


def test_longer_pieces_do_not_cross_characters_without_a_piece():
    """`abXcd` without X does not teach that `cd` starts a word."""
    texts = chinese(1000) + ["ab" + chr(0x4E00 + i) + "cd" for i in range(900, 1000)] * 50
    pieces = sentencepiece.SentencePieceProcessor(model_proto=Tokenizer.train(texts, 512).model)
    known = {pieces.id_to_piece(i) for i in range(259, pieces.get_piece_size())}
    assert {"▁ab", "cd"} <= known and not {"▁cd", "abcd"} & known


@pytest.mark.parametrize("letters", ["あいうえおかきくけこさしすせそ", "가나다라마바사아자차카타파하", "กขฃคฅฆงจฉชซฌญ"])
def test_other_scripts(letters):
    tokenizer = Tokenizer.train([letters] * 20, 300)
    assert all(is_whole(tokenizer, letter) for letter in letters)
