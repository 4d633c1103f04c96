"""What of a long text the model sees: at most its context_length, by a rule that is a function of the length alone.

While the text fits, all of it. When it has grown one token too long, the last half of the context is kept, and from
there the window grows again. A window that grows by one token can use its cache; only at a cut (once in half a context)
is the cache filled anew. A window that slid by one token each time would need that at every token, since keys and
values hold the positions at which they were computed.
"""

from __future__ import annotations


def window_length(n_tokens: int, context_length: int) -> int:
    """How many of the last of `n_tokens` tokens the model sees when it predicts the next one.

    For a context of 8: 1, 2, ... 8 tokens, then with nine 4, with ten 5, ... with thirteen 8, with fourteen 4 again.
    """
    if n_tokens <= context_length:
        return n_tokens
    half = max(context_length // 2, 1)
    return half + (n_tokens - context_length - 1) % (context_length - half + 1)
