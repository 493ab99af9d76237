"""An exact little tokenizer: 256 bytes, chat markers, and a list of common words with their leading space.

``decode(encode(text)) == text`` for any text, and ``encode(decode(ids)) == ids`` for what the engine generates, so an
answer that comes back as history is the same tokens and hits the prefix cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_TEXT = """
the of and to a in is that it was for on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know get through back much
before go good new write our used me man too any day same right look think also around another came come work three
word must because does part even place well such here take why things help put years different away again off went
old number great tell men say small every found still between name should home big give air line set own under read
last never us left end along while might next sound below saw something thought both few those always looked show
large often together asked house world going want school important until form food keep children feet land side
without boy once animals life enough took sometimes four head above kind began almost live page got earth need far
hand high year mother light parts country father let night following picture being study second eyes soon times
story boys since white days ever paper hard near sentence better best across during today others however sure means
knew try told young miles sun ways thing whole hear example heard several change answer room sea against top turned
learn point city play toward five using himself usually engine token model request queue river pipe valve pressure
flow gate reservoir channel unit
"""
_WORDS = tuple(_TEXT.split())

SPECIALS = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|developer|>")
_FIRST_SPECIAL = 256
BEGIN = _FIRST_SPECIAL
END = _FIRST_SPECIAL + 1
ROLES = {name[2:-2]: _FIRST_SPECIAL + i for i, name in enumerate(SPECIALS) if i >= 2}
FIRST_WORD = _FIRST_SPECIAL + len(SPECIALS)
WORD_COUNT = len(_WORDS)
FULL_STOP = ord(".")

VOCABULARY: tuple[bytes, ...] = (
    *(bytes([value]) for value in range(256)),
    *(name.encode() for name in SPECIALS),
    *(f" {word}".encode() for word in _WORDS),
)
_WORD_IDS = {word: FIRST_WORD + i for i, word in enumerate(VOCABULARY[FIRST_WORD:])}
_PIECES = re.compile(rb" [A-Za-z]+|[^ ]+| ")


def encode(text: str) -> list[int]:
    """Return the token ids of ``text``. Never yields a special token: markers in a text are plain bytes."""
    ids: list[int] = []
    known = _WORD_IDS.get
    for piece in _PIECES.findall(text.encode("utf-8", "surrogatepass")):
        word = known(piece)
        if word is None:
            ids.extend(piece)
        else:
            ids.append(word)
    return ids


def decode(ids: Iterable[int]) -> str:
    """Return the text of ``ids``; bytes that are no UTF-8 become replacement characters. Raises IndexError."""
    return b"".join(VOCABULARY[i] for i in ids).decode("utf-8", "replace")


def encode_chat(messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
    """Return the tokens of (role, text) messages: each is ``<|role|> text <|end|>``, then ``<|assistant|>``."""
    ids = [BEGIN]
    for role, text in messages:
        ids.append(ROLES.get(role, ROLES["user"]))
        ids.extend(encode(text))
        ids.append(END)
    if add_generation_prompt:
        ids.append(ROLES["assistant"])
    return ids
