"""Text to ids with SentencePiece, the way LLaMA's original ("legacy") tokenizer does it."""

import hashlib
import importlib.resources
import os
from collections.abc import Iterable

import sentencepiece
from anygpt_tokenizers.cli import UserError

from anygpt_jax import storage, vocabulary

SHIPPED_PREFIX = "shipped:"


class TextTokenizer:
    """A SentencePiece model that encodes one run of text at a time.

    A run is the text between two tokens of the vocabulary that are not text. Each is encoded on its own with
    the dummy prefix, also right after such a token: `: a cat` after `[MMGPT]` gives `▁:`, `▁a`, `▁cat`. Text
    is never searched for control tokens: a typed `<sosp>` or `</s>` becomes those characters' ordinary
    pieces.

    `size`: number of pieces; `hash`: first 16 hex digits of the model file's SHA-256.
    """

    bos_id, eos_id, pad_id = vocabulary.BOS_ID, vocabulary.EOS_ID, vocabulary.PAD_ID

    def __init__(self, model_path: str | os.PathLike):
        """`model_path`: a file, or "shipped:NAME" for a model in this package's assets."""
        self._bytes = _read_model(os.fspath(model_path))
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._bytes)
        except RuntimeError as error:
            raise UserError(f"{os.fspath(model_path)!r} is not a SentencePiece model.") from error
        self.hash = hashlib.sha256(self._bytes).hexdigest()[:16]
        self.size = self._model.vocab_size()

    def encode_run(self, text: str) -> list[int]:
        """Ids of one run of text; the empty run has none."""
        return self._model.encode(text) if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one run of ids; the dummy prefix, `<s>`, `</s>` and padding leave no trace."""
        reserved = (self.bos_id, self.eos_id, self.pad_id)
        return self._model.decode([int(i) for i in ids if int(i) not in reserved])

    def piece(self, token_id: int) -> str:
        """The piece of an id, such as `▁red`."""
        return self._model.id_to_piece(int(token_id))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model file, so that a data set or checkpoint can be read without its source."""
        storage.write_bytes(path, self._bytes)


def _read_model(path: str) -> bytes:
    if path.startswith(SHIPPED_PREFIX):
        name = path.removeprefix(SHIPPED_PREFIX)
        asset = importlib.resources.files("anygpt_jax") / "assets" / f"{name}.model"
        if not asset.is_file():
            raise UserError(f"There is no shipped text model {name!r}; 'shipped:smallworld' is one.")
        return asset.read_bytes()
    try:
        return storage.read_bytes(path)
    except OSError as error:
        reason = error.strerror or "it is not there"  # gcsfs leaves it empty
        raise UserError(f"The text model {path!r} cannot be read: {reason}.") from error
