"""Text as it is generated, token by token: a character is shown once all its bytes are there, never half of one."""

from __future__ import annotations

import codecs

from lightwell.tokenizer.base import Tokenizer


class StreamDecoder:
    """All that `push` and `finish` return, joined, is `tokenizer.decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that are complete now. Raises TokenizerError for an id outside the vocabulary."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD if the last character stayed unfinished, else nothing."""
        return self._decoder.decode(b"", final=True)
