from lightwell.tokenizer.size import choose_vocab_size


def test_vocabulary_grows_with_text_and_time():
    sizes = [choose_vocab_size(10**exponent, 600.0) for exponent in range(4, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 512
    assert choose_vocab_size(10**9, 30.0) < choose_vocab_size(10**9, 7200.0)
    assert choose_vocab_size(10**9, None) == choose_vocab_size(10**9, 7200.0)
