from lightwell.tokenizer.size import SIZES, choose_vocab_size

MB = 10**6


def test_vocabulary_grows_with_text():
    sizes = [choose_vocab_size(4**n * 10**4) for n in range(10)]
    assert sizes == sorted(sizes)
    assert set(sizes) == set(SIZES)


def test_vocabulary_grows_with_what_is_seen_of_an_endless_text():
    sizes = [choose_vocab_size(10**12, seen) for seen in (MB // 10, MB, 5 * MB, 100 * MB)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 512
    assert sizes[-1] == max(SIZES)


def test_only_different_text_bears_a_larger_vocabulary():
    sizes = [choose_vocab_size(4 * MB, times * 4 * MB) for times in (0.1, 0.8, 2, 30)]
    assert sizes == [512, 2048, 2048, 2048]
    assert choose_vocab_size(4 * MB) == choose_vocab_size(4 * MB, 8 * MB)
    assert choose_vocab_size(0, 0) == 512
