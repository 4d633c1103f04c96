"""Byte-pair encoding: the plain algorithm, the two libraries and transformers give the same ids, whatever the text."""

import copy
import json
import random
import threading
from functools import partial

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import corpus, dense_text, gpt2, gpt2_folder, texts, trained

from lightwell.errors import TokenizerError
from lightwell.tokenizer.bpe import (
    GPT2_PATTERN,
    LEARNED_LENGTH,
    PATTERN,
    SEPARATOR,
    BPETokenizer,
    merge,
    train_bpe,
)
from lightwell.tokenizer.bpe_reference import byte_order, encode_by_pairs, encode_pieces, learn
from lightwell.tokenizer.gpt2 import load_gpt2
from lightwell.tokenizer.huggingface import QWEN_PATTERN, read_bpe, spell, write_bpe
from lightwell.tokenizer.load import load_tokenizer, tokenizer_from_json
from lightwell.tokenizer.stretches import LONGEST, STRETCH, stretches

BYTES = [bytes([byte]) for byte in byte_order()]


def cut(text, pattern=PATTERN):
    return [piece.encode() for piece in regex.findall(pattern, text)]


def library_of(made):
    """HuggingFace's `tokenizers`, reading what we write."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(json.dumps(made.to_json()))
    library.encode_special_tokens = True
    return library


@pytest.mark.parametrize("made", [trained, gpt2])
def test_encoding_is_the_plain_algorithm(made):
    made = made()

    @settings(deadline=None)
    @given(st.text(st.characters(max_codepoint=0x2FF)) | dense_text)  # all Unicode versions agree on these
    def check(text):
        pieces = cut(text, made.pattern)
        assert b"".join(pieces) == text.encode()
        assert made.encode(text) == encode_pieces(pieces, made.ranks)

    check()


@pytest.mark.parametrize("made", [trained, gpt2])
def test_both_libraries_give_the_same_ids(made):
    made = made()
    library = library_of(made)

    @settings(deadline=None)
    @given(texts)
    def check(text):
        assert made.encode(text) == library.encode(text).ids

    check()
    for text in corpus(3000, seed=5):
        assert made.encode(text) == library.encode(text).ids


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text("light wel").map(str.encode))
def test_merging_by_rank_is_applying_each_pair_in_turn(piece):
    made = trained()
    assert merge(piece, made.ranks) == encode_by_pairs(piece, made.merges)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("abc de1\n", max_size=40), max_size=8), st.integers(0, 30))
def test_learning_is_the_plain_algorithm(learned_from, n_merges):
    made = train_bpe(learned_from, 257 + n_merges)
    pieces = [piece for text in learned_from for piece in cut(text)]
    assert made.merges == learn(pieces, n_merges, LEARNED_LENGTH)
    assert [made.token_bytes(i) for i in range(256)] == BYTES
    assert made.separator_id == made.vocab_size - 1


def test_learning_from_a_real_text_is_the_plain_algorithm():
    source = corpus(3000, seed=3)
    made = train_bpe(source, 340)
    assert made.vocab_size == 340
    assert made.merges == learn([piece for text in source for piece in cut(text)], 83, LEARNED_LENGTH)


def test_learning_from_one_very_long_word_takes_no_time():
    word = "".join(random.Random(4).choices("abcdefgh", k=300_000))
    made = train_bpe([word], 600)
    assert made.vocab_size == 600
    assert made.decode(made.encode(word)) == word


def test_learning_gives_the_same_each_time():
    assert train_bpe(corpus(), 700).hash == trained().hash


def test_short_texts_give_small_vocabularies():
    assert train_bpe([], 1000).vocab_size == 257
    assert train_bpe(["ab ab"], 1000).merges == [(b"a", b"b")]
    assert train_bpe(["-" * 5000], 1000).byte_lengths().max() <= LEARNED_LENGTH
    for size in (-1, 0, 256, 10**9):
        with pytest.raises(TokenizerError, match=rf"expected a vocabulary of 257 .* to 1,000,000 tokens, got {size:,}"):
            train_bpe(["text"], size)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        train_bpe(["text", "\ud800"], 300)


def test_learning_says_how_far_it_is():
    said = []
    train_bpe(["word " * 10, "more"], 300, progress=lambda done, total, what: said.append((done, total)))
    assert said == [(50, None), (54, None), (54, 54)]


def test_the_separator_learned_from_a_text_is_not_the_separator():
    made = train_bpe([SEPARATOR * 200] * 3, 400)
    assert made.separator_id not in made.encode(SEPARATOR)
    assert b"separator" in [made.token_bytes(i) for i in range(made.vocab_size)]


@pytest.mark.parametrize("made", [trained, gpt2])
def test_a_typed_separator_is_text_everywhere(made, tmp_path):
    made = made()
    loaded = load_tokenizer(made.save(tmp_path))
    for text in (made.separator, f"a{made.separator}b", made.separator * 3, f"{made.separator}" + "x" * 30_000):
        for each in (made, loaded):
            ids = each.encode(text)
            assert each.separator_id not in ids
            assert each.decode(ids) == text


@pytest.mark.parametrize("pattern", [PATTERN, GPT2_PATTERN])
@settings(deadline=None)
@given(text=texts)
def test_patterns_take_every_character(pattern, text):
    assert "".join(regex.findall(pattern, text)) == text


def test_how_text_is_cut():
    def parts(text):
        return regex.findall(PATTERN, text)

    assert parts("def light(well):") == ["def", " light", "(", "well", "):"]
    assert parts("if x:\n        return 2024") == ["if", " x", ":", "\n        ", "return", " ", "20", "24"]
    assert parts("a  b\t\n\n  c") == ["a", " ", " b", "\t\n\n  ", "c"]
    assert parts("हिन्दी में") == ["हिन्दी", " में"]
    assert parts("文字。字") == ["文字", "。", "字"]
    assert parts("don't") == ["don", "'", "t"]


# --- large texts ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["word ", "слово ", "x\n", " ", "\n", "\u3000", "!\n\n", "é", "12", "'s "]), max_size=60),
    st.integers(1, 60),
    st.sampled_from(["bpe", "gpt2"]),
)
def test_cutting_large_texts_does_not_change_ids(parts, times, which):
    made = {"bpe": trained, "gpt2": gpt2}[which]()
    text = "".join(parts) * times
    data = text.encode()
    whole = made._encode_stretch((data, False)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightwell.tokenizer.stretches.STRETCH", 100)
        patch.setattr("lightwell.tokenizer.bpe.stretches", partial(stretches, longest=64))
        found = list(stretches(data, longest=64))
        assert b"".join(piece for piece, _ in found) == data
        assert made.encode(text) == whole
        for piece, has_long_piece in found:
            piece.decode()  # no character is cut
            if not has_long_piece:
                assert max(map(len, cut(piece.decode(), made.pattern)), default=0) <= 64


def test_stretches_are_of_bounded_size():
    data = ("word " * 5 + "\n").encode() * 50_000
    found = list(stretches(data))
    assert not any(has_long_piece for _, has_long_piece in found)
    assert max(len(piece) for piece, _ in found) <= STRETCH + LONGEST
    assert len(found) > 10


LONG = {
    "a": "a" * 2_000_000,
    "line breaks": "\n" * 2_000_000,
    "line breaks, then a letter": "\n" * 2_000_000 + "x",
    "blanks, then a letter": " " * 2_000_000 + "x",
    "dashes": "-" * 2_000_000,
    "letters": "".join(random.Random(1).choices("abcdefghijkl", k=2_000_000)),
    "bytes": random.Random(2).randbytes(2_000_000).decode("latin-1"),
    "ideographs": "".join(map(chr, random.Random(3).choices(range(0x4E00, 0x9FFF), k=700_000))),
    "no-break spaces": "\u00a0" * 700_000,
}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("made", [trained, gpt2])
def test_two_megabytes_of_anything(name, made):
    made = made()
    ids = made.encode_array(LONG[name])
    assert made.decode(ids.tolist()) == LONG[name]


@pytest.mark.parametrize("name", LONG)
def test_long_pieces_get_the_ids_that_the_plain_way_gives(name):
    made = trained()
    text = LONG[name][-3_000:]
    slow = made._encode_stretch((text.encode(), True))
    assert slow.tolist() == made._encode_stretch((text.encode(), False)).tolist()
    if name != "bytes":  # the plain algorithm needs a second for each of these
        assert slow.tolist() == encode_pieces(cut(text), made.ranks)


def test_a_long_run_in_the_middle_of_a_text():
    made = trained()
    text = "before it. " * 3000 + "\n" * 300_000 + "after it " * 3000 + "-" * 50_000
    assert [long for _, long in stretches(text.encode())].count(True) == 2
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert ids == library_of(made).encode(text).ids


def test_many_threads_at_once():
    made = BPETokenizer(trained()._tokens, trained().separator_id)
    text = "".join(corpus(6000, seed=8)) * 20
    expected = trained().encode(text)
    found = []
    threads = [threading.Thread(target=lambda: found.append(made.encode(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pattern", [PATTERN, GPT2_PATTERN])
def test_both_libraries_cut_alike_at_every_character_there_is(pattern):
    """A vocabulary in which a letter, digit, sign or space joins any byte after it shows which pieces were cut."""
    joins = [first + byte for first in (b"a", b"1", b"!", b" ") for byte in BYTES]
    made = BPETokenizer([*BYTES, *joins, b""], 256 * 5, pattern)
    for first in (*range(0, 0x33000, 0x1000), 0xE0000):  # the rest of Unicode holds no characters yet
        characters = [chr(code) for code in range(first, first + 0x1000) if not 0xD800 <= code < 0xE000]
        data = "".join(f"a{c}\n1{c}\n!{c}\n {c}\n" for c in characters).encode()
        assert np.array_equal(made._encode_stretch((data, True)), made._encode_stretch((data, False)))


# --- GPT-2's own ---------------------------------------------------------------------------------------------------


def test_known_ids_of_gpt2():
    made = gpt2()
    assert made.kind == "gpt2"
    assert (made.vocab_size, made.separator_id) == (50257, 50256)
    assert made.encode("Hello, world") == [15496, 11, 995]
    assert made.encode("") == []
    assert made.token_bytes(50255) == b" gazed"
    assert made.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]


def test_gpt2_in_all_its_layouts(tmp_path):
    source = gpt2_folder()
    made = gpt2()
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_bytes((source / "encoder.json").read_bytes())
    (pair / "merges.txt").write_bytes((source / "vocab.bpe").read_bytes().replace(b"\n", b"\r\n"))
    made.save(tmp_path / "one")
    for found in (load_gpt2(pair / "merges.txt"), load_gpt2(tmp_path / "one" / "tokenizer.json"), load_tokenizer(pair)):
        assert (found.kind, found.hash) == ("gpt2", made.hash)


def test_gpt2_files_that_are_not(tmp_path):
    with pytest.raises(TokenizerError, match=r"expected vocab\.json and merges\.txt, or encoder\.json"):
        load_gpt2(tmp_path)
    ids = json.loads((gpt2_folder() / "encoder.json").read_text())
    merges = (gpt2_folder() / "vocab.bpe").read_text()

    def refused(ids, merges, message):
        (tmp_path / "vocab.json").write_text(json.dumps(ids))
        (tmp_path / "merges.txt").write_bytes(merges.encode() if isinstance(merges, str) else merges)
        with pytest.raises(TokenizerError, match=message):
            load_gpt2(tmp_path)

    refused([1], merges, "no <|endoftext|>")
    refused({**ids, "<|endoftext|>": 7}, merges, "ids with gaps or twice")
    refused({**ids, "<|endoftext|>": "x"}, merges, "ids with gaps or twice")
    refused(ids, b"\xff\xfe", "no UTF-8")
    refused(ids, merges.replace("\nh e\n", "\nh e x\n"), "not spelled in bytes")
    lines = merges.split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    refused(ids, "\n".join(lines), "ids that do not follow the order of its merges")


# --- files of HuggingFace's ----------------------------------------------------------------------------------------


def test_transformers_reads_what_we_write(tmp_path):
    from transformers import PreTrainedTokenizerFast

    made = trained()
    file = made.save(tmp_path)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(file), split_special_tokens=True)
    for text in ["", "Hello, world\n    indented", "слово 文字 🍎", f"a{SEPARATOR}b", *corpus(600, seed=9)]:
        assert fast(text)["input_ids"] == made.encode(text)
        assert fast.decode(made.encode(text), clean_up_tokenization_spaces=False) == text
    assert fast.convert_tokens_to_ids(SEPARATOR) == made.separator_id


def test_we_read_what_transformers_writes_of_gpt2(tmp_path):
    from transformers import GPT2Tokenizer

    source = gpt2_folder()
    ids = json.loads((source / "encoder.json").read_text())
    merges = [tuple(line.split()) for line in (source / "vocab.bpe").read_text().split("\n")[1:] if line]
    GPT2Tokenizer(vocab=ids, merges=merges).save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.kind, found.hash) == ("gpt2", gpt2().hash)


def test_we_read_what_transformers_writes_of_qwen(tmp_path):
    from transformers import Qwen2Tokenizer

    content = write_bpe(train_bpe(corpus(3000), 500))["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    theirs = Qwen2Tokenizer(vocab=content["vocab"], merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    theirs.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.pattern, found.nfc, found.separator) == (QWEN_PATTERN, True, "<|endoftext|>")
    assert set(found.others) == {"<|im_start|>", "<|im_end|>"}
    again = load_tokenizer(found.save(tmp_path / "again"))
    assert again.hash == found.hash
    plain = [*corpus(900, seed=4), "nai\u0308ve", "don't 2024!\n\n x", "a\n\nb!!\n\n", "IT'S"]
    for text in [*plain, "wait!\n" * 30_000]:
        assert again.encode(text) == theirs(text)["input_ids"]
    typed = again.encode("<|im_start|><|endoftext|>")
    assert not {again.separator_id, *again.others.values()} & set(typed)
    assert again.decode([again.others["<|im_end|>"], *again.encode("nai\u0308ve")]) == "naïve"


def change(content, *path, to):
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (["model", "type"], "Unigram", "a model of type Unigram"),
        (["normalizer"], {"type": "Lowercase"}, "a normalizer of type Lowercase"),
        (["model", "dropout"], 0.1, "dropout = 0.1"),
        (["model", "ignore_merges"], True, "ignore_merges = True"),
        (["model", "continuing_subword_prefix"], "##", "continuing_subword_prefix"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "another way of cutting"),
        (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "(a+)+$", "another way of cutting"),
        (["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed", "another way of cutting"),
        (["pre_tokenizer", "pretokenizers", 1, "add_prefix_space"], True, "another way of cutting"),
        (["pre_tokenizer"], None, "something else"),
        (["added_tokens"], [], "0 special tokens"),
        (["added_tokens", 0, "id"], 3, "ids with gaps or twice"),
        (["added_tokens", 0, "id"], True, "ids with gaps or twice"),
        (["added_tokens"], [{"id": 1, "content": "x"}, {"id": 2, "content": "y"}], "2 special tokens, none of which"),
        (["model", "vocab"], {}, "ids with gaps"),
        (["model", "vocab", "a"], None, "ids with gaps"),
        (["model", "merges"], [], "do not follow the order"),
        (["model", "merges", 0], ["a"], "not spelled in bytes"),
        (["model", "merges", 0], ["日", "本"], "not spelled in bytes"),
        (["model", "merges", 0], 7, "not spelled in bytes"),
    ],
)
def test_what_we_cannot_reproduce_is_refused_by_name(path, to, message):
    content = change(write_bpe(train_bpe(corpus(900), 300)), *path, to=to)
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_json(content, "somewhere")


def test_a_vocabulary_whose_merges_depend_on_more_than_its_tokens_is_refused():
    """("ab", "c") makes the token, but encoding by rank reaches it as ("a", "bc"), which was learned first."""
    tokens = [*BYTES, b"bc", b"ab", b"abc"]
    content = write_bpe(BPETokenizer([*tokens, b""], 259))
    assert content["model"]["merges"][2] == ["a", "bc"]
    with pytest.raises(TokenizerError, match="do not follow the order"):
        read_bpe(change(content, "model", "merges", 2, to=["ab", "c"]), "somewhere")
    with pytest.raises(TokenizerError, match="made of two earlier ones"):
        _ = BPETokenizer([*BYTES, b"abc", b""], 257).merges


def test_spelling_is_that_of_the_library():
    from tokenizers import pre_tokenizers

    assert sorted(map(spell, BYTES)) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert spell(" ä\n".encode()) == "ĠÃ¤Ċ"
    assert [spell(byte) for byte in BYTES] == sorted(map(spell, BYTES))


def test_lines_that_end_in_an_ideographic_full_stop_are_cut_too():
    """Their last bytes are also those of white space beyond ASCII, behind which there is no safe cut."""
    for end in "。！？」\u3000\u2028\u00a0\u0085":
        data = ("白井の水は深く、村の井戸は浅い" + end + "\n").encode() * 4000
        pieces = list(stretches(data))
        assert b"".join(piece for piece, _ in pieces) == data
        blank = end.isspace()
        assert (len(pieces) == 1) == blank, (end, len(pieces))
