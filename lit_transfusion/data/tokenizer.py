"""The text tokenizer: SentencePiece, as in Llama, with two markers for images after its vocabulary."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from lit_transfusion.data.training_text import training_text
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable

CONTROLS_AND_BYTES = 3 + 256  # pieces of each vocabulary


class Tokenizer:
    """A SentencePiece model and the ids of BOI and EOI, which follow its vocabulary.

    Args:
        model: The serialised SentencePiece model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos = self._pieces.bos_id()
        self.eos = self._pieces.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise InputError("the SentencePiece model has no BOS or no EOS; train it with --bos_id=1 --eos_id=2")
        self.boi = self._pieces.get_piece_size()  # begin of image
        self.eoi = self.boi + 1  # end of image
        self.vocab_size = self.boi + 2
        self.pad = self.eos  # stands where nobody looks: at patches and in padding

    @classmethod
    def from_file(cls, path: str) -> "Tokenizer":
        if not Path(path).is_file():
            raise InputError(f"tokenizer model {path} not found")
        try:
            return cls(Path(path).read_bytes())
        except RuntimeError:
            raise InputError(f"{path} is not a SentencePiece model") from None

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        verbatim: bool = False,
        character_coverage: float | None = None,
    ) -> "Tokenizer":
        """Train byte-pair encoding on `texts` with byte fallback, so that any text can be written.

        As in Llama 2's, each digit is a piece, and runs of spaces can be pieces. The vocabulary is smaller than
        `vocab_size` where the texts do not hold that many pieces. The result depends on nothing but the arguments.

        Args:
            texts: Captions or texts of any length; long ones are divided between two words.
            vocab_size: Most pieces, the bytes and controls included.
            verbatim: Keep each space, line end and form of a letter, as texts need; captions are on one line, with
                single spaces.
            character_coverage: Share of all characters whose letters have pieces of their own, in [0.98, 1]; rarer
                letters are written as bytes. None: 0.99995 as in Llama 2, or 0.9995 where there are more than 1,000
                different ones (Chinese, Japanese, Korean); where these do not fit, the most frequent, in half of
                the room.
        """
        room = vocab_size - CONTROLS_AND_BYTES
        passages, character_coverage = training_text(texts, room, verbatim, character_coverage)
        model = io.BytesIO()
        options: dict[str, Any] = {}
        if verbatim:
            options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(passages),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                character_coverage=character_coverage,
                num_threads=1,
                minloglevel=2,
                **options,
            )
        except RuntimeError as error:
            # After the place in SentencePiece and what it checked there, which is all that it says of no texts.
            reason = str(error).rpartition("] ")[2] or "there are none"
            raise InputError(f"no tokenizer of {vocab_size} pieces could be trained on these texts: {reason}") from None
        return cls(model.getvalue())

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without BOS and EOS.

        Raises:
            InputError: It contains half of a surrogate pair, which is no character.
        """
        if not is_encodable(text):
            raise InputError(
                f"the text {text[:60]!a} contains half of a surrogate pair, which is no character; remove it"
            )
        return tuple(self._pieces.encode(text))

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of `token_ids`; the markers of images are left out."""
        return self._pieces.decode([i for i in token_ids if i < self.boi])

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is one byte of a letter that has no piece of its own."""
        return token_id < self.boi and self._pieces.is_byte(token_id)
