"""Text for the tests of this room."""

import random


def prose(n_bytes, seed=0, paragraph="\n\n"):
    """Paragraphs of random words, reproducible."""
    pick = random.Random(seed)
    words = ["the", "of", "light", "well", "and", "building", "Äther", "shaft", "day", "into", "a", "bring"]
    text, size = [], 0
    while size < n_bytes:
        words_here = " ".join(pick.choice(words) for _ in range(pick.randrange(20, 150)))
        text.append(words_here + str(pick.randrange(10**6)) + paragraph)
        size += len(text[-1].encode())
    return "".join(text).encode()
