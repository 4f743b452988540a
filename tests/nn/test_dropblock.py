"""DropBlock: whole squares, as many as wanted, in training only, by the key of the phase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.dropblock import dropblock_mask
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import learner
from maml_jax.nn.resnet import ResNet12


def squares(mask, size):
    """Whether all that is dropped of a map `[height, width]` lies in dropped squares."""
    height, width = mask.shape
    covered = np.zeros(mask.shape, bool)
    for i in range(height - size + 1):
        for j in range(width - size + 1):
            if not mask[i : i + size, j : j + size].any():
                covered[i : i + size, j : j + size] = True
    return (covered == (mask == 0)).all()


def test_whole_squares_and_the_sum_of_ones():
    mask = np.asarray(dropblock_mask(jax.random.key(0), (8, 9, 11, 4), 0.2, 3))
    assert all(squares(mask[i, ..., c], 3) for i in range(8) for c in range(4))
    np.testing.assert_allclose(mask.sum(), mask.size, rtol=1e-5)
    assert len(np.unique(mask)) == 2


@pytest.mark.parametrize(("side", "size"), [(21, 5), (10, 3)])
def test_about_as_many_as_wanted(side, size):
    """A little less, for squares overlap."""
    mask = dropblock_mask(jax.random.key(1), (16, side, side, 16), 0.1, size)
    assert 0.08 < float((mask == 0).mean()) < 0.1


def test_a_map_smaller_than_the_square_is_dropped_as_a_whole_or_not():
    mask = np.asarray(dropblock_mask(jax.random.key(2), (64, 2, 2, 8), 0.3, 5))
    dropped = (mask == 0).all((1, 2))
    assert (dropped == (mask == 0).any((1, 2))).all()
    assert 0.2 < dropped.mean() < 0.4


@pytest.mark.parametrize("piece", [0, 4096])
def test_in_the_encoder_only_in_training_and_by_the_key(piece):
    """In pieces, too, whose images have a mask for each."""
    x = jax.random.uniform(jax.random.key(0), (6, 32, 32, 1))
    plain = learner(Classifier(ResNet12(channels=(2, 2, 2, 2)), LinearHead(2)))
    params, stats = plain.init(jax.random.key(1), x)

    def answer(drop, **phase):
        module = Classifier(ResNet12(channels=(2, 2, 2, 2), drop=drop), LinearHead(2), piece=piece)
        return learner(module).apply(params, stats, x, Phase(Pass.QUERY, **phase))[0]

    key, other = jax.random.key(2), jax.random.key(3)
    expected = answer(0.0)
    np.testing.assert_allclose(answer(0.5), expected, rtol=1e-5)
    dropped = answer(0.5, train=True, key=key)
    assert jnp.abs(dropped - expected).max() > 1e-3
    np.testing.assert_array_equal(answer(0.5, train=True, key=key), dropped)
    assert jnp.abs(answer(0.5, train=True, key=other) - dropped).max() > 1e-3
    with pytest.raises(ValueError, match="no key"):
        answer(0.5, train=True)
