"""Text to token ids and back: byte-pair encoding trained on the user's text (bpe), GPT-2's own (gpt2), bytes and
characters (simple), reading any of them (load), text as it is generated (stream). base.py says what they share."""
