"""The benchmark's sides take their turns; what they measure is no matter of tests."""

import dataclasses

import jax
import pytest

from parity import sides
from parity.bench import ROWS, Row

TINY = Row(side=16, shot=1, query=1, tasks=2, steps=1, turn=1)


def test_every_row_names_its_sides():
    assert {side for row in ROWS.values() for side in (row.ours, row.against)} == sides.SIDES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(sides.SIDES))
def test_a_side_takes_its_turns(name):
    side = sides.SIDES[name](TINY)
    side.turn()
    side.turn()
    assert side.peak_mib() > 0
    assert side.devices in (1, 2, len(jax.devices()))


@pytest.mark.slow
def test_pieces_save_temporary_memory():
    row = dataclasses.replace(TINY, side=84, query=15, tasks=1)
    whole, pieces = (sides.SIDES[name](row) for name in ("ours", "pieces"))
    assert pieces.temporary_mib < 0.4 * whole.temporary_mib
