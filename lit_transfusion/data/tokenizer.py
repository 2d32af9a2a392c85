"""The text tokenizer: SentencePiece as in Llama, plus two image markers after its vocabulary."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from lit_transfusion.data.training_text import training_text
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable

CONTROLS_AND_BYTES = 3 + 256  # pieces in every vocabulary


class Tokenizer:
    """A SentencePiece model, with the ids of BOI and EOI after its vocabulary.

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
        self.pad = self.eos  # used at patches and in padding, where tokens have no effect

    @classmethod
    def from_file(cls, path: str) -> "Tokenizer":
        """Read a SentencePiece model.

        Raises:
            InputError: The file does not exist or is not a SentencePiece model with BOS and EOS.
        """
        if not Path(path).is_file():
            raise InputError(f"tokenizer model {path} not found; give the path of a SentencePiece tokenizer.model")
        try:
            return cls(Path(path).read_bytes())
        except RuntimeError:
            raise InputError(f"{path} is not a SentencePiece model; give the path of a tokenizer.model") from None

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        verbatim: bool = False,
        character_coverage: float | None = None,
    ) -> "Tokenizer":
        """Train byte-pair encoding on `texts`, with byte fallback so that any text can be encoded.

        As in Llama 2, each digit is a piece, and runs of spaces can be pieces. The vocabulary is smaller than
        `vocab_size` if the texts contain fewer pieces. The result depends only on the arguments.

        Args:
            texts: Captions or texts of any length; long ones are divided between two words.
            vocab_size: Largest number of pieces, with bytes and controls.
            verbatim: Keep spaces, line ends and forms of letters, as texts need. Otherwise texts are normalised, as
                captions need: one line, single spaces.
            character_coverage: Share of all characters that get their own pieces, in [0.98, 1]; rarer characters are
                encoded as bytes. None: 0.99995 as in Llama 2, or 0.9995 for more than 1,000 different characters
                (Chinese, Japanese, Korean). If these do not fit, the most frequent characters get half of the pieces.

        Raises:
            InputError: The vocabulary is too small for the characters, or there are no texts.
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
            # Drop the source location and the failed check. For empty input, the message contains nothing else.
            reason = str(error).rpartition("] ")[2] or "they are empty"
            raise InputError(
                f"no tokenizer with vocab_size {vocab_size} could be trained on these texts ({reason}); change "
                "vocab_size or the texts"
            ) from None
        return cls(model.getvalue())

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without BOS and EOS.

        Raises:
            InputError: The text contains half of a surrogate pair, which is not a character.
        """
        if not is_encodable(text):
            raise InputError(
                f"the text {text[:60]!a} contains half of a surrogate pair, which is not a character; remove it"
            )
        return tuple(self._pieces.encode(text))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Decode `token_ids` to text, without the image markers."""
        return self._pieces.decode([i for i in token_ids if i < self.boi])

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is one byte of a character without its own piece."""
        return token_id < self.boi and self._pieces.is_byte(token_id)
