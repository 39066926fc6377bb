"""Tables of the attention kernel in bytes."""

import numpy as np
import pytest

from tqcore.chain import chain_mse, chain_tables, nibble_tables
from tqcore.codebook import lloyd_max
from tqkv.tables import byte_tables, round_tables

RATES = (2.0, 2.5, 3.0, 3.5, 4.0)


@pytest.mark.parametrize("bits", RATES)
def test_entries_of_seven_bits_cost_little(bits):
    tables, exact = byte_tables("chain", 128, bits), chain_tables(bits, 2)
    assert tables.entries.shape == exact.shape
    assert tables.entries.max() <= 127
    errors = tables.values() - exact
    # No entry is off by more than half a step, or what the mean of the errors takes off that.
    assert (np.abs(errors) <= tables.steps[:, None, None]).all()
    added = (errors**2).mean(axis=2).sum(axis=1).mean()
    assert added < 0.015 * chain_mse(bits, 2)


@pytest.mark.parametrize("bits", [2, 4])
def test_scalar_codes_have_no_second_table(bits):
    tables, centroids = byte_tables("mse", 64, bits), lloyd_max(64, bits)
    assert not tables.values()[:, 1].any()
    errors = tables.values()[:, 0] - nibble_tables(centroids)[:, 0]
    assert (errors**2).mean() < 1e-4
    # Every dimension of a nibble has the same centroids.
    for dim in range(4 // bits):
        assert np.array_equal(np.unique(tables.values()[dim, 0]), np.unique(tables.values()[0, 0]))


def test_constant_tables_stay_what_they_are():
    assert np.array_equal(
        round_tables(np.full((1, 2, 16), 0.5, np.float32)).values(), np.full((1, 2, 16), 0.5)
    )
