"""The vocabulary of a tokenizer.json, the format of the `tokenizers` library."""

import json
from pathlib import Path
from typing import Any

from lit_transfusion.errors import InputError

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
NAMING_ENDS = (SETTINGS, "special_tokens_map.json", "config.json")  # files that name BOS and EOS, in this order


class JSONVocabulary:
    """A tokenizer.json with its BOS and EOS. It has the methods of SentencePieceProcessor that `Tokenizer` uses.

    Args:
        model_proto: JSON with the content of the tokenizer.json as `tokenizer`, and the ids `bos` and `eos`.
    """

    def __init__(self, model_proto: bytes) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise InputError(f'{FILE} needs the package tokenizers: pip install -e ".[language-model]"') from None
        self._content = json.loads(model_proto)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._content["tokenizer"]))
        self._tokenizer.encode_special_tokens = True  # the name of EOS inside a text is plain text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def read(cls, path: Path) -> "JSONVocabulary":
        """Read a tokenizer.json, and BOS and EOS from the files beside it.

        Raises:
            InputError: The file is not a tokenizer.json, or no file names BOS or EOS.
        """
        content = {"tokenizer": read_json(path)}
        try:
            vocabulary = cls(json.dumps(content).encode())
        except InputError:
            raise
        except Exception as error:  # the class that `tokenizers` raises
            raise InputError(f"{path} is not a {FILE} of the tokenizers library ({error}); use another file") from None
        vocabulary._content |= {name: vocabulary._find_end(name, path.parent) for name in ("bos", "eos")}
        return vocabulary

    @property
    def model(self) -> bytes:
        """The argument from which the same vocabulary is made."""
        return json.dumps(self._content).encode()

    def files(self) -> dict[str, bytes]:
        """Content of the files, by their names, from which `read` makes the same vocabulary."""
        ends = {f"{name}_token": self._tokenizer.id_to_token(self._content[name]) for name in ("bos", "eos")}
        return {FILE: json.dumps(self._content["tokenizer"]).encode(), SETTINGS: json.dumps(ends).encode()}

    def bos_id(self) -> int:
        return self._content["bos"]

    def eos_id(self) -> int:
        return self._content["eos"]

    def get_piece_size(self) -> int:
        """The largest id, of added tokens too, plus 1."""
        return self._size

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: list[int]) -> str:
        """Decode ids to text, without BOS, EOS and other special tokens."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is only a part of a character."""
        return self.decode([token_id]) == "\ufffd"

    def _find_end(self, name: str, folder: Path) -> int:
        """The id of BOS or EOS, from the first file of the folder that names it."""
        for path in (folder / file for file in NAMING_ENDS):
            settings = read_json(path) if path.is_file() else {}
            token = settings.get(f"{name}_token", settings.get(f"{name}_token_id"))
            token = token[0] if isinstance(token, list) else token  # chat models may have several ends
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            found = self._tokenizer.token_to_id(token) if isinstance(token, str) else token
            if not isinstance(found, int) or found not in range(self._size):
                raise InputError(f"{path}: the {name.upper()} token {token!r} is not in {FILE}; change it")
            return found
        raise InputError(
            f"{folder / FILE} has no {name.upper()} token: no file beside it names one; add "
            f'"{name}_token": "TOKEN" to {folder / SETTINGS}'
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains a mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); use another file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} contains no mapping; use another file")
    return content
