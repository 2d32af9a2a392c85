"""The text tokenizer: SentencePiece as in Llama, or a tokenizer.json, plus two image markers after its vocabulary."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from lit_transfusion import hub
from lit_transfusion.data import json_vocabulary
from lit_transfusion.data.json_vocabulary import JSONVocabulary
from lit_transfusion.data.training_text import training_text
from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable

CONTROLS_AND_BYTES = 3 + 256  # pieces in every vocabulary that is trained here
SENTENCEPIECE = "tokenizer.model"
FILES = (json_vocabulary.FILE, SENTENCEPIECE)  # a folder contains one of the two; if it has both, the first is used
FOLDER_FILES = (*FILES, *json_vocabulary.NAMING_ENDS)


class Tokenizer:
    """A vocabulary of text, with the ids of BOI and EOI after it.

    Args:
        model: The serialised SentencePiece model, or that of a `JSONVocabulary`.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        kind = JSONVocabulary if model.startswith(b"{") else sentencepiece.SentencePieceProcessor
        self._pieces = kind(model_proto=model)
        self.bos = self._pieces.bos_id()
        self.eos = self._pieces.eos_id()  # some vocabularies have one token for BOS and EOS
        if self.bos < 0 or self.eos < 0:
            raise InputError("the SentencePiece model has no BOS or no EOS; train it with --bos_id=1 --eos_id=2")
        self.boi = self._pieces.get_piece_size()  # begin of image
        self.eoi = self.boi + 1  # end of image
        self.vocab_size = self.boi + 2
        self.pad = self.eos  # used at patches and in padding, where tokens have no effect

    @classmethod
    def from_file(cls, path: str) -> "Tokenizer":
        """Read a tokenizer.model of SentencePiece, or a tokenizer.json with the files beside it that name BOS and EOS.

        Args:
            path: The file, a folder that contains it, or owner/name on the Hugging Face hub.

        Raises:
            InputError: The file does not exist, or is not a tokenizer with BOS and EOS.
        """
        file = Path(path)
        if not file.exists() and hub.NAME.fullmatch(path):
            file = hub.download(path, FOLDER_FILES)
        if file.is_dir():
            found = [file / name for name in FILES if (file / name).is_file()]
            if not found:
                raise InputError(f"{path} contains no {' and no '.join(FILES)}; use a folder with one of them")
            file = found[0]
        if not file.is_file():
            raise InputError(
                f"tokenizer {path} not found; give a SentencePiece {SENTENCEPIECE}, a {json_vocabulary.FILE}, or a "
                "folder with one of them"
            )
        if file.suffix == ".json":
            return cls(JSONVocabulary.read(file).model)
        model = file.read_bytes()
        other = InputError(f"{file} is not a SentencePiece model; give the path of a {SENTENCEPIECE}")
        if model.startswith(b"{"):
            raise other
        try:
            return cls(model)
        except RuntimeError:
            raise other from None

    def save(self, folder: Path) -> Path:
        """Write the files from which `from_file` reads the same tokenizer, and remove that of the other kind.

        Returns:
            The file with the vocabulary.
        """
        files = self._pieces.files() if isinstance(self._pieces, JSONVocabulary) else {SENTENCEPIECE: self.model}
        for name in set(FILES) - set(files):
            (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder / next(iter(files))

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
