"""Normalisation modes: where moments come from, and what becomes of the statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.errors import ConfigError
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.moments import image_moments
from maml_jax.nn.norm import MODES, PER_STEP, BatchNorm, Normalization
from tests.helpers import assert_same

pytestmark = pytest.mark.usefixtures("x64")

STEPS, STEP = 3, 1


def collection(mode):
    return "lasting_stats" if mode in ("global", "per_step") else "batch_stats"


def row(mode, stored):
    """What a layer of this mode reads of what it has stored, in the phases of these tests."""
    return stored[STEP] if mode in PER_STEP else stored


def of_steps(mode, value, other):
    """One step's own among others."""
    return jnp.full((STEPS, *value.shape), other).at[STEP].set(value) if mode in PER_STEP else value


def run(mode, which, train, x, mean=0.0, var=1.0, offset=None):
    """Normalises with scales 1, 2, ... and biases 0.5; steps but the second have other parameters and statistics."""
    channels = x.shape[-1]
    start = {"scale": jnp.arange(1.0, channels + 1), "bias": jnp.full(channels, 0.5)}
    stats = {"mean": jnp.full(channels, mean), "var": jnp.full(channels, var)}
    stats = {} if mode in ("batch", "per_step_batch") else {n: of_steps(mode, v, 7.0) for n, v in stats.items()}
    norm = BatchNorm(mode, STEPS if mode in PER_STEP else 0)
    variables = {"params": {n: of_steps(mode, v, -9.0) for n, v in start.items()}, collection(mode): stats}

    def call(norm, x, phase):
        return norm(x, phase) if offset is None else norm.affine(x, image_moments(x), phase, offset)(x)

    y, state = norm.apply(variables, x, Phase(which, train, STEP), mutable=[collection(mode)], method=call)
    return y, state.get(collection(mode), {})


def expected(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * np.arange(1.0, x.shape[-1] + 1) + 0.5


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(3.0, 2.0, (3, 4, 5, 2))


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mode", ["batch", "episodic", "global", "per_step", "per_step_batch"])
def test_moments(mode, which, train, x):
    by_batch = {"episodic": which is not Pass.QUERY, "global": which is not Pass.QUERY and train, "per_step": train}
    y, stats = run(mode, which, train, x, mean=0.3, var=2.0)
    batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    taken = (batch_mean, batch_var) if by_batch.get(mode, True) else (0.3, 2.0)
    np.testing.assert_allclose(y, expected(x, *taken), rtol=1e-12)
    if mode not in by_batch:
        assert stats == {}
        return
    updated = by_batch[mode] and which is not Pass.CONTEXT
    mean = 0.9 * 0.3 + 0.1 * batch_mean if updated else np.full(2, 0.3)
    var = 0.9 * 2.0 + 0.1 * x.var((0, 1, 2), ddof=1) if updated else np.full(2, 2.0)
    np.testing.assert_allclose(row(mode, stats["mean"]), mean, rtol=1e-12)
    np.testing.assert_allclose(row(mode, stats["var"]), var, rtol=1e-12)
    if mode == "per_step":  # the other steps' stay
        np.testing.assert_array_equal(stats["mean"][jnp.array([0, 2])], 7.0)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_step_has_its_own_parameters_and_beyond_the_last_the_last_ones(step, x):
    norm = BatchNorm("per_step_batch", STEPS)
    scales = jnp.array([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]])
    variables = {"params": {"scale": scales, "bias": jnp.zeros((STEPS, 2))}}
    plain = {"params": {"scale": scales[min(step, 2)], "bias": jnp.zeros(2)}}
    for given in (step, jnp.int32(step)):
        phase = Phase(Pass.SUPPORT, True, given)
        assert_same(norm.apply(variables, x, phase), BatchNorm().apply(plain, x, phase))
        rises = norm.apply(variables, x, phase, method="rises")
        np.testing.assert_array_equal(rises, [step < 2, True])


@pytest.mark.parametrize("mode", MODES)
def test_variables_of_a_fresh_layer(mode, x):
    """Of which the collections say whether they outlive an episode. To initialise moves no statistics."""
    variables = BatchNorm(mode, STEPS).init(jax.random.key(0), jnp.asarray(x), Phase(Pass.SUPPORT, True))
    shape = (STEPS, 2) if mode in PER_STEP else (2,)
    assert variables["params"]["scale"].shape == variables["params"]["bias"].shape == shape
    assert set(variables) == {"params"} | (set() if mode in ("batch", "per_step_batch") else {collection(mode)})
    if mode in ("episodic", "global", "per_step"):
        assert_same(variables[collection(mode)], {"mean": jnp.zeros(shape), "var": jnp.ones(shape)}, 0)


def test_features_without_places_are_normalised_too():
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 2))
    y, stats = run("episodic", Pass.SUPPORT, True, jnp.asarray(x))
    np.testing.assert_allclose(y, expected(x, x.mean(0), x.var(0)), rtol=1e-12)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize(("how", "message"), [(("bach",), "has the modes batch, .*'bach'"), (("per_step",), "got 0")])
def test_layers_that_cannot_be(how, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(*how)


@pytest.mark.parametrize("which", Pass)
@pytest.mark.parametrize("mode", ["batch", "episodic", "global"])
def test_an_offset_is_as_good_as_one_added_before(mode, which, x):
    offset = jnp.array([0.7, -1.2])
    apart = run(mode, which, True, x, 0.3, 2.0, offset)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), apart, run(mode, which, True, x + offset, 0.3, 2.0)
    )


def test_the_variance_survives_a_large_mean_in_single_precision():
    with jax.enable_x64(False):
        x = np.random.default_rng(0).normal(1000.0, 1.0, (8, 16, 16, 2)).astype(np.float32)
        y, _ = run("batch", Pass.SUPPORT, True, jnp.asarray(x))
        exact = expected(x.astype(np.float64), *(f(x.astype(np.float64), (0, 1, 2)) for f in (np.mean, np.var)))
        np.testing.assert_allclose(y, exact, atol=1e-3)


def test_no_gradient_through_running_statistics(x):
    def later(x):
        _, stats = run("episodic", Pass.SUPPORT, True, x)
        return stats["mean"].sum() + stats["var"].sum()

    np.testing.assert_array_equal(jax.grad(later)(jnp.asarray(x)), 0.0)


def test_a_single_value_per_channel_keeps_the_variance_finite():
    _, stats = run("episodic", Pass.SUPPORT, True, np.ones((1, 1, 1, 2)))
    assert np.isfinite(stats["var"]).all()


@pytest.mark.parametrize(
    ("norm", "name", "mode"),
    [
        ("batch", "encoder/block1/norm", "batch"),
        ("block[12]=global, episodic", "encoder/block2/norm", "global"),
        ("block[12]=global, episodic", "encoder/block3/norm", "episodic"),
        ("block1=batch,block=global", "encoder/block1/norm", "batch"),
    ],
)
def test_mode_by_pattern(norm, name, mode):
    policy = Normalization.parse(norm)
    assert policy.mode(name) == mode
    assert Normalization.parse(policy) is policy
    assert Normalization.parse(str(policy)) == policy
    assert hash(Normalization.parse(norm)) == hash(policy)


@pytest.mark.parametrize("norm", ["", "layer", "block1=instance, batch", "block(=batch, batch", "block1=global"])
def test_bad_descriptions_are_refused(norm):
    with pytest.raises(ConfigError, match=r"model\.norm"):
        Normalization.parse(norm).mode("encoder/block2/norm")


@pytest.mark.parametrize(
    ("norm", "uses_context", "transductive"),
    [
        ("batch", False, True),
        ("block1=episodic, per_step_batch", False, True),
        ("block1=metabn, episodic", True, False),
        ("tasknorm", True, False),
        ("batch_of_three=per_step, global", False, False),  # by modes, not by words
    ],
)
def test_what_follows_from_the_modes(norm, uses_context, transductive):
    policy = Normalization.parse(norm, 4)
    assert (policy.uses_context, policy.transductive, policy.steps) == (uses_context, transductive, 4)


def context_then(mode, support, query, slope=0.0, level=0.0):
    """Normalises a support and then a query set, and gives both and the statistics between."""
    channels = support.shape[-1]
    params = {"scale": jnp.arange(1.0, channels + 1), "bias": jnp.full(channels, 0.5)}
    if mode == "tasknorm":
        params |= {"context_scale": jnp.asarray(slope), "context_offset": jnp.asarray(level)}
    stats = {name: jnp.full((channels,), jnp.nan) for name in ("context_mean", "context_var")}
    stats["context_size"] = jnp.asarray(jnp.nan)
    apply = lambda x, which, stats: BatchNorm(mode).apply(  # noqa: E731
        {"params": params, "batch_stats": stats}, x, Phase(which, True), mutable=["batch_stats"]
    )
    first, state = apply(support, Pass.CONTEXT, stats)
    second, after = apply(query, Pass.QUERY, state["batch_stats"])
    return first, second, after["batch_stats"]


def mixed(x, support, alpha):
    """TaskNorm's moments (Bronskill et al. 2020, arXiv:2003.03284), image by image: those of two merged populations."""
    mean, var = support.mean((0, 1, 2)), support.var((0, 1, 2))
    own, own_var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    both = alpha * mean + (1 - alpha) * own
    return both, alpha * (var + mean**2) + (1 - alpha) * (own_var + own**2) - both**2


@pytest.mark.parametrize(("slope", "level"), [(0.0, 0.0), (0.1, -0.7), (0.0, 50.0), (0.0, -50.0)])
def test_tasknorm_mixes_the_contexts_moments_with_each_images(x, slope, level):
    query = np.random.default_rng(1).normal(-1.0, 3.0, (5, 4, 5, 2))
    first, second, stats = context_then("tasknorm", x, query, slope, level)
    alpha = 1 / (1 + np.exp(-(slope * len(x) + level)))
    np.testing.assert_allclose(first, expected(x, *mixed(x, x, alpha)), rtol=1e-10)
    np.testing.assert_allclose(second, expected(query, *mixed(query, x, alpha)), rtol=1e-10)
    assert stats["context_size"] == len(x)


def test_metabn_takes_the_contexts_moments(x):
    query = np.random.default_rng(1).normal(-1.0, 3.0, (5, 4, 5, 2))
    first, second, _ = context_then("metabn", x, query)
    np.testing.assert_allclose(first, expected(x, x.mean((0, 1, 2)), x.var((0, 1, 2))), rtol=1e-12)
    np.testing.assert_allclose(second, expected(query, x.mean((0, 1, 2)), x.var((0, 1, 2))), rtol=1e-12)


@pytest.mark.parametrize("mode", ["metabn", "tasknorm"])
def test_gradients_flow_through_the_contexts_moments(x, mode):
    through = jax.grad(lambda support: jnp.tanh(context_then(mode, support, x + 1.0)[1]).sum())(jnp.asarray(x))
    assert jnp.any(through != 0)


def test_float32_keeps_its_digits_far_from_zero():
    """As after a first convolution of images in [0, 1]: the mean is many deviations, and there are many pixels."""
    x = (20 + np.random.default_rng(0).normal(size=(3, 84, 84, 2))).astype(np.float32)
    y, _ = run("batch", Pass.SUPPORT, True, jnp.asarray(x))
    exact = x.astype(np.float64)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected(exact, exact.mean((0, 1, 2)), exact.var((0, 1, 2))), atol=3e-6)
