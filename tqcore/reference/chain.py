"""The chain code: every coordinate is a sum of table entries of the last few nibbles of a closed string."""

import numpy as np

__all__ = ["chain_decode", "chain_encode", "chain_lut", "chain_terms", "closing_nibbles", "nibble_count"]

_RUN_IN = 16  # nibbles on either side of the seam that fix the state there
_CLIP = np.float32(6.0)
_FORBIDDEN = 2**29


def nibble_count(d, p, q):
    """Number J of nibbles of a code of `p` nibbles per `q` dimensions."""
    return (d - 1) * p // q + 1 if p <= q else -(-d * p // q)


def closing_nibbles(d, p, q):
    """Nibble floor(i * p / q) at which dimension i is complete, int64 [d]."""
    return np.arange(d) * p // q


def chain_decode(nibbles, table, d, p, q):
    """Rotated reconstruction, float32 [n, d], table entries added in order of age.

    Parameters
    ----------
    nibbles : numpy.ndarray
        int [n, J].
    table : numpy.ndarray
        float32 [q, memory, 16].
    d, p, q : int
        Dimension and rate.
    """
    j, phase = closing_nibbles(d, p, q), np.arange(d) % q
    total = table[phase, 0, nibbles[:, j]]
    for o in range(1, table.shape[1]):
        total = total + table[phase, o, nibbles[:, (j - o) % nibbles.shape[1]]]
    return total


def chain_lut(queries, table, d, p, q):
    """Scores of nibble values, float64 [nq, J, 16]: <query, decoded> is their sum over the nibbles."""
    count = nibble_count(d, p, q)
    lut = np.zeros((len(queries), count, 16))
    for i, j in enumerate(closing_nibbles(d, p, q)):
        for o in range(table.shape[1]):
            lut[:, (j - o) % count] += queries[:, i, None].astype(np.float64) * table[i % q, o]
    return lut


def chain_terms(y, table, p, q):
    """Integer costs of the encoder.

    Parameters
    ----------
    y : numpy.ndarray
        float32 [n, d], rotated rows of squared length d.
    table : numpy.ndarray
        float32 [q, memory, 16].
    p, q : int
        Rate.

    Returns
    -------
    linear : list of numpy.ndarray
        For each age o, int64 [n, J, 16]: the part of the squared error linear in the row.
    square : list of numpy.ndarray
        For each nibble, int64 [16] * memory, axes by age: the part that is the squared reconstruction.
    """
    n, d = y.shape
    memory = table.shape[1]
    scale = 2.0**16 if p < q else 2.0**18
    clipped = np.clip(y, -_CLIP, _CLIP)
    scaled = (-2.0 * scale * table.astype(np.float64)).astype(np.float32)
    closing = closing_nibbles(d, p, q)
    linear = [np.zeros((n, nibble_count(d, p, q), 16), dtype=np.int64) for _ in range(memory)]
    square = []
    for j in range(nibble_count(d, p, q)):
        dims = np.flatnonzero(closing == j)
        for o in range(memory):
            total = np.zeros((n, 16), dtype=np.float32)
            for i in dims:
                total = total + clipped[:, i, None] * scaled[i % q, o]
            linear[o][:, j] = np.rint(total).astype(np.int64) * 16
        energy = np.zeros((16,) * memory)
        for i in dims:
            reach = np.zeros((16,) * memory)
            for o in range(memory):
                shape = [1] * memory
                shape[o] = 16
                reach = reach + table[i % q, o].astype(np.float64).reshape(shape)
            energy += reach**2
        square.append(np.rint(scale * energy).astype(np.int64) * 16)
    return linear, square


def chain_encode(y, table, p, q):
    """Nibbles int64 [n, J] of the best closed string, by dynamic programming over integers.

    A first pass over the seam fixes the state there; the second finds the best string through that state.
    Ties go to the smaller older nibble. Parameters as in `chain_terms`.
    """
    n = len(y)
    linear, square = chain_terms(y, table, p, q)
    memory, count = table.shape[1], len(square)
    states = 16 ** (memory - 1)
    cost = np.zeros((n, states), dtype=np.int64)
    back = []
    for t in range(-_RUN_IN, _RUN_IN):
        cost, choice = _step(cost, linear, square, t % count)
        back.append(choice)
    seam = np.argmin(cost, axis=1)
    for choice in reversed(back[_RUN_IN:]):
        seam = _previous(seam, choice, states)

    cost = np.full((n, states), _FORBIDDEN, dtype=np.int64)
    cost[np.arange(n), seam] = 0
    back = []
    for j in range(count):
        cost, choice = _step(cost, linear, square, j)
        back.append(choice)
    nibbles = np.zeros((n, count), dtype=np.int64)
    state = seam
    for j in reversed(range(count)):
        nibbles[:, j] = state // (states // 16)
        state = _previous(state, back[j], states)
    return nibbles


def _step(cost, linear, square, j):
    """Costs [n, states] after nibble j, and the nibble dropped on the way there; states: newest first."""
    n = len(cost)
    memory = len(linear)
    # Axes: row, then nibbles of age 0 .. memory - 1; the last one is dropped.
    before = cost.reshape((n, 1) + (16,) * (memory - 1))
    total = before + linear[-1][:, j].reshape((n,) + (1,) * (memory - 1) + (16,)) + square[j]
    choice = np.argmin(total, axis=-1)
    best = np.min(total, axis=-1)
    for o in range(memory - 1):
        shape = [n] + [1] * (memory - 1)
        shape[1 + o] = 16
        best = best + linear[o][:, j].reshape(shape)
    best, choice = best.reshape(n, -1), choice.reshape(n, -1)
    return best - best[:, :1], choice


def _previous(state, choice, states):
    """State before the step: the newest nibble goes, the dropped one comes back."""
    return state % (states // 16) * 16 + choice[np.arange(len(state)), state]
