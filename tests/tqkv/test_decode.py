"""What the decode kernel's host side decides without a device."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tqkv.kernels.decode import _sign_words  # noqa: E402
from tqkv.kernels.schedule import choose, waits  # noqa: E402


@pytest.mark.parametrize("warps", [8, 12, 16])
@pytest.mark.parametrize("extra", [0, 132])
@pytest.mark.parametrize("pairs", [4, 8, 12, 24, 32, 64, 100])
def test_long_contexts_keep_the_multiprocessors_busy(pairs, extra, warps):
    for tokens in (8192, 32768, 262144):
        splits, windows = choose(pairs, tokens // 16, extra, 4, 132, warps)
        assert (windows > 0) == (extra > 0)
        turns = -(-pairs * splits // 132)
        assert pairs * splits / (turns * 132) > (0.6 if tokens == 8192 else 0.85), (tokens, splits)


def test_short_contexts_are_split_no_finer_than_their_tiles():
    assert choose(4, 0, 132, 4, 132, 16) == (1, 1)
    assert choose(4, 1, 0, 4, 132, 16) == (1, 0)
    assert choose(1, 32, 0, 1, 132, 16) == (2, 0)
    assert choose(1, 32, 0, 1, 132, 8) == (4, 0)
    assert choose(1000, 10000, 132, 4, 132, 16)[0] <= 4


def test_windows_share_blocks_where_all_blocks_run_at_once_then():
    assert choose(4, 2048, 132, 6, 132, 8) == (32, 1)
    assert choose(8, 2048, 132, 4, 132, 16) == (16, 2)
    assert waits(8, 4, 16, 2, 132)
    assert not waits(8, 4, 16, 1, 132)
    assert choose(8, 2048, 0, 4, 132, 16) == (16, 0)
    # Where they do not, idle multiprocessors take one window after the other.
    assert choose(64, 2048, 132, 4, 132, 16) == (2, 1)
    # Nor where a block would have to serve many.
    assert choose(32, 2048, 132, 4, 132, 16)[1] == 1
    # A window as long as the packed tokens has a block of its own.
    assert choose(8, 2048, 32768, 4, 132, 16)[1] == 1


@pytest.mark.parametrize("d", [64, 128, 256])
def test_sign_words_hold_the_signs_of_a_lane(d):
    signs = torch.randint(0, 2, (3, d), generator=torch.Generator().manual_seed(d)) * 2.0 - 1.0
    words = _sign_words(signs)
    assert words.dtype == torch.int32
    assert words is _sign_words(signs)
    for n in range(3):
        seen = []
        for lane in range(32):
            g, t = divmod(lane, 4)
            for bit in range(8):
                h, k, e = bit >> 2, bit >> 1 & 1, bit & 1
                row, column = (g + 8 * h, 2 * t + e + 8 * k) if n == 1 else (2 * t + e + 8 * k, g + 8 * h)
                element = 16 * column + row
                flipped = bool(int(words[lane]) >> (8 * n + bit) & 1)
                assert flipped == (element < d and signs[n, element] < 0)
                seen.append(element)
        assert sorted(seen) == list(range(256))
