"""Bytes, characters, what all tokenizers share, and the stream decoder."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import dense_text, gpt2, texts, trained

from lightwell.errors import TokenizerError
from lightwell.tokenizer.load import load_tokenizer
from lightwell.tokenizer.simple import BytesTokenizer, CharTokenizer, train_characters
from lightwell.tokenizer.stream import StreamDecoder

CHARACTERS = train_characters(["naïve Straße слово 文字 🍎🍎"])


def all_kinds():
    return [BytesTokenizer(), CHARACTERS, CharTokenizer(""), trained(), gpt2()]


@pytest.fixture(scope="module", params=range(5), ids=["bytes", "chars", "chars of none", "bpe", "gpt2"])
def pair(request, tmp_path_factory):
    """A tokenizer, and the same saved and loaded."""
    made = all_kinds()[request.param]
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(folder)
    return made, load_tokenizer(folder)


def test_round_trip_after_save_and_load(pair):
    made, loaded = pair

    @settings(deadline=None)
    @given(texts)
    def check(text):
        ids = made.encode(text)
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == text
        assert made.separator_id not in ids
        assert all(0 <= token < made.vocab_size for token in ids)
        assert made.byte_lengths()[ids].sum() == len(text.encode())
        assert made.decode_bytes([made.separator_id, *ids, made.separator_id]) == text.encode()

    check()


def test_what_is_stored_is_all_there_is(pair):
    made, loaded = pair
    assert type(loaded) is type(made)
    assert (loaded.kind, loaded.vocab_size, loaded.separator_id) == (made.kind, made.vocab_size, made.separator_id)
    assert loaded.hash == made.hash
    assert [loaded.token_bytes(i) for i in range(loaded.vocab_size)] == [
        made.token_bytes(i) for i in range(made.vocab_size)
    ]


def test_arrays_and_lists_agree(pair):
    made, _ = pair
    several = ["", "one", "zwei äöü", "", "<|separator|>"]
    arrays = made.encode_arrays(several)
    assert [array.dtype for array in arrays] == [np.dtype(np.uint32)] * 5
    assert [array.tolist() for array in arrays] == [made.encode(text) for text in several]


def test_the_separator_is_no_text(pair):
    made, _ = pair
    assert made.token_bytes(made.separator_id) == b""
    assert made.byte_lengths()[made.separator_id] == 0
    assert made.decode([made.separator_id]) == ""


@pytest.mark.parametrize("text", ["\ud800", "fine until here \udc00\ud800", "\udfff" * 3])
def test_lone_surrogates_are_refused(pair, text):
    made, _ = pair
    for encode in (made.encode, made.encode_array, lambda t: made.encode_arrays(["ok", t])):
        with pytest.raises(TokenizerError, match=r"got a lone surrogate U\+D[8-F]"):
            encode(text)


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_ids_outside_the_vocabulary(pair, wrong):
    made, _ = pair
    for call in (lambda: made.decode([0, wrong]), lambda: made.token_bytes(wrong), StreamDecoder(made).push):
        with pytest.raises(TokenizerError, match=rf"expected an id from 0 to {made.vocab_size - 1}, got {wrong}"):
            call(wrong) if call.__name__ == "push" else call()


def test_numpy_ids_decode(pair):
    made, _ = pair
    assert made.decode(made.encode_array("numpy ids")) == "numpy ids"


@settings(deadline=None)
@given(dense_text, st.lists(st.integers(0, 600), max_size=30))
def test_streams_never_show_half_a_character(text, noise):
    for made in (trained(), BytesTokenizer()):
        noise_here = [token % made.vocab_size for token in noise]
        for ids in (made.encode(text), noise_here, [*noise_here, *made.encode(text), made.separator_id]):
            stream = StreamDecoder(made)
            shown = [stream.push(token) for token in ids]
            assert "".join(shown) + stream.finish() == made.decode(ids)
    stream = StreamDecoder(BytesTokenizer())
    assert "\ufffd" in text or not any("\ufffd" in stream.push(byte) for byte in text.encode())


def test_stream_waits_for_the_whole_character():
    stream = StreamDecoder(BytesTokenizer())
    assert [stream.push(byte) for byte in "a🍎".encode()] == ["a", "", "", "", "🍎"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"


def test_bytes():
    made = BytesTokenizer()
    assert made.encode("Aé") == [65, 0xC3, 0xA9]
    assert (made.vocab_size, made.separator_id) == (257, 256)


def test_characters_have_ids_and_others_are_bytes():
    made = CharTokenizer("éж")
    assert made.encode("aéxжü") == [97, 256, 120, 257, 0xC3, 0xBC]
    assert (made.vocab_size, made.separator_id) == (259, 258)
    assert CharTokenizer("жé").encode("éж") == [257, 256]


def test_the_most_frequent_characters_get_the_room_there_is():
    made = train_characters(["ж" * 5 + "é" * 9 + "光" * 7, "ж"], vocab_size=259)
    assert made.characters == "é光"
    assert train_characters(["abc"]).vocab_size == 257
    with pytest.raises(TokenizerError, match="at least 257"):
        train_characters(["abc"], vocab_size=256)


@pytest.mark.parametrize("characters", ["éé", "aé"])
def test_characters_that_make_no_vocabulary(characters):
    with pytest.raises(TokenizerError, match="expected distinct characters beyond ASCII"):
        CharTokenizer(characters)


def test_tokenizers_that_do_the_same_have_the_same_hash():
    assert len({made.hash for made in all_kinds()}) == 5
    assert BytesTokenizer().hash == BytesTokenizer().hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON"),
        ("[1, 2]", "got list"),
        ("{}", "got other JSON"),
        ('{"lightwell": {"format": 2, "kind": "bytes"}}', "expected tokenizer format 1 .* got 2"),
        ('{"lightwell": {"format": 1, "kind": "words"}}', "expected bytes or chars .* got 'words'"),
        ('{"lightwell": {"format": 1, "kind": "chars"}}', "expected bytes or chars"),
        ('{"lightwell": {"format": 1, "kind": "chars"}, "characters": "aa"}', "expected distinct"),
        ('{"lightwell": {"format": 1, "kind": "chars"}, "characters": "\\ud800"}', "lone surrogate"),
        ("[" * 100_000, "levels deep"),
        ('{"model": 3}', "got something else"),
        ('{"model": {"type": "WordPiece"}}', "got something else"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.json"):
        with pytest.raises(TokenizerError, match=r"expected a tokenizer in .* got none"):
            load_tokenizer(path)


def test_save_takes_a_folder_or_a_file(tmp_path):
    assert BytesTokenizer().save(tmp_path) == tmp_path / "tokenizer.json"
    other = BytesTokenizer().save(tmp_path / "other.json")
    assert json.loads(other.read_text()) == {"lightwell": {"format": 1, "kind": "bytes"}}
    assert load_tokenizer(other).kind == "bytes"
