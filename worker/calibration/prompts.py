"""Prompts of known length that no cache knows: random words, each of the same number of tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping

WORDS = (
    *"abcdefghijklmnopqrstuvwxyz",
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they",
    "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "we",
    "there", "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up", "out",
    "them", "then", "she", "many", "some", "so",
)  # fmt: skip
"""Candidates; nearly every tokenizer has a token for most of them."""
LEAST_WORDS = 16
"""Fewer words make prompts that share their first tokens now and then."""


class Prompts:
    """Makes texts of so many tokens. ``words`` are used with a space before each, ``word_tokens`` is what each of them
    takes (a mean where the engine has no tokenizer to ask), ``extra_tokens`` what the engine puts before a prompt."""

    def __init__(self, words: tuple[str, ...], *, word_tokens: float, extra_tokens: float, rng: random.Random) -> None:
        if not words or word_tokens <= 0:
            raise ValueError("prompts need words that have tokens")
        self._words, self._word_tokens, self._extra = words, word_tokens, extra_tokens
        self._rng = rng

    def unique(self, tokens: int) -> str:
        """A prompt of about ``tokens`` tokens that nobody has sent before."""
        return self._text(round((tokens - self._extra) / self._word_tokens))

    def prefix(self, tokens: int) -> str:
        """The beginning of a prompt: at least ``tokens`` tokens."""
        return self._text(-int(-(tokens - self._extra) // self._word_tokens))

    def rest(self, prefix: str, tokens: int) -> str:
        """What makes ``prefix`` a prompt of about ``tokens`` tokens: at least a word, new each time."""
        words = round((tokens - self._extra) / self._word_tokens) - prefix.count(" ")
        return self._text(words)

    def _text(self, words: int) -> str:
        return " " + " ".join(self._rng.choices(self._words, k=max(1, words)))


def best_words(tokens: Mapping[str, int]) -> tuple[tuple[str, ...], int] | None:
    """Return the words that take the same number of tokens, the fewest at which there are ``LEAST_WORDS``, and that
    number; None when no number has so many. ``tokens`` gives what each candidate takes."""
    for count in sorted(set(tokens.values()) - {0}):
        words = tuple(sorted(word for word, taken in tokens.items() if taken == count))
        if len(words) >= LEAST_WORDS:
            return words, count
    return None
