"""A trained model on images of one's own: in Python, and on the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maml_jax
from maml_jax.data.augment import IMAGENET_STATISTICS
from maml_jax.errors import ConfigError, DataError
from maml_jax.experiment.method import build_method
from maml_jax.models import trained as trained_models
from maml_jax.models.trained import Score
from tests.helpers import pixels
from tests.models import save_run

SUPPORT, QUERY = pixels(1, shape=(5, 16, 16, 1)), pixels(2, shape=(6, 16, 16, 1))
LABELS = [0, 1, 2, 0, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Gives trained models by their settings, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def get(channels=1, **settings):
        key = channels, *sorted(settings.items())
        if key not in made:
            save_run(folder / str(len(made)), channels, **settings)
            made[key] = maml_jax.load(folder / str(len(made)))
        return made[key]

    return get


@pytest.fixture(scope="module")
def adapted(model):
    return model().adapt(SUPPORT, LABELS)


def as_in_evaluation(trained, norm, images, steps=3):
    """Logits by the functions that evaluation is made of."""
    config = trained.config.copy_and_resolve_references()
    config.model.norm = norm
    method = build_method(config, config.task.way)
    seen = lambda x: jnp.asarray(x, jnp.float32) / 255  # noqa: E731
    labels = jnp.asarray(LABELS, jnp.int32)
    return maml_jax.predict(method, trained.params, trained.stats, seen(SUPPORT), labels, seen(images), steps)


@pytest.mark.parametrize(
    ("trained_with", "answers_with"),
    [("batch", "metabn"), ("episodic", "episodic"), ("block1=global, batch", "block1=global, metabn")],
)
def test_answers_are_those_of_evaluation(model, trained_with, answers_with):
    trained = model(model__norm=trained_with)
    said = trained.adapt(SUPPORT, LABELS).predict(QUERY)
    expected = jax.nn.softmax(as_in_evaluation(trained, answers_with, QUERY))
    np.testing.assert_allclose(said.probabilities, expected, rtol=1e-5, atol=1e-6)
    assert said.classes == (0, 1, 2)
    assert said.labels == expected.argmax(-1).tolist()


def test_transductive_answers_are_those_of_evaluation(model):
    adapted = model().adapt(SUPPORT, LABELS, transductive=True)
    assert adapted.transductive
    expected = jax.nn.softmax(as_in_evaluation(model(), "batch", QUERY))
    np.testing.assert_allclose(adapted.predict(QUERY).probabilities, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(adapted.predict(QUERY[:2]).probabilities - expected[:2]).max() > 1e-3, "not transductive at all"


NORMS = ["batch", "episodic", "global", "per_step", "per_step_batch", "metabn", "tasknorm"]


@pytest.mark.parametrize("norm", NORMS)
def test_no_bit_depends_on_the_other_images(model, norm):
    """Not on which they are, how many, or where among them an image stands: over the edge of a batch, too."""
    adapted = model(model__norm=norm).adapt(SUPPORT, LABELS)
    many = pixels(3, shape=(70, 16, 16, 1))
    together, features = adapted.predict(many).probabilities, adapted.features(many)
    assert not adapted.transductive
    assert np.isfinite(together).all()
    assert len(np.unique(together[:, 0])) > 60
    for i in (0, 5, 63, 64, 69):
        np.testing.assert_array_equal(adapted.predict(many[i : i + 1]).probabilities[0], together[i])
        np.testing.assert_array_equal(adapted.features(many[i : i + 1])[0], features[i])
    np.testing.assert_array_equal(adapted.predict(many[::-1]).probabilities, together[::-1])


def test_per_step_batch_takes_the_scales_of_the_last_step(model):
    """Which here are those of all steps, so that the model is one of plain `batch`."""
    trained = model(model__norm="per_step_batch")
    config = trained.config.copy_and_resolve_references()
    first = jax.tree.map(lambda leaf: leaf, trained.params)
    plain = jax.tree.map(lambda leaf: leaf, trained.params)
    for block in ("block1", "block2"):
        for kind in ("scale", "bias"):
            row = trained.params["encoder"][block]["norm"][kind][-1]
            plain["encoder"][block]["norm"][kind] = row
            first["encoder"][block]["norm"][kind] = jnp.stack([row, row])
    config.model.norm, config.inner.fixed = "batch", "norm"
    stepwise = trained.config.copy_and_resolve_references()
    stepwise.inner.fixed = "norm"
    ours = maml_jax.Trained(stepwise, 1, first, {}, 0).adapt(SUPPORT, LABELS).predict(QUERY)
    theirs = maml_jax.Trained(config, 1, plain, {}, 0).adapt(SUPPORT, LABELS).predict(QUERY)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5, atol=1e-6)


def test_support_loss_falls_and_is_the_mean_over_images(model):
    zero = model(model__head="zero", inner__encoder_rate=0.1, inner__head_rate=0.1)
    adapted = zero.adapt(SUPPORT, LABELS)
    np.testing.assert_allclose(adapted.support_loss.before, np.log(3), rtol=1e-6)
    assert adapted.support_loss.after < adapted.support_loss.before
    still = zero.adapt(SUPPORT, LABELS, steps=0)
    np.testing.assert_allclose(still.support_loss, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(still.predict(QUERY).probabilities, 1 / 3, rtol=1e-6)


def test_number_of_classes(model):
    five = list("abcde")
    zero = model(model__head="zero").adapt(SUPPORT, five).predict(QUERY)
    assert zero.classes == tuple("abcde")
    assert zero.probabilities.shape == (6, 5)
    two = model().adapt(SUPPORT, [7, 7, 9, 9, 9]).predict(QUERY)
    assert two.classes == (7, 9)
    np.testing.assert_allclose(two.probabilities.sum(-1), 1, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"3 outputs.*at most 3 classes, and these are 5; models .*head=zero"):
        model().adapt(SUPPORT, five)


def test_programs_are_compiled_once(model):
    trained = model()
    trained.adapt(SUPPORT, LABELS).predict(QUERY)
    program = trained._programs_for(3, 3, False)
    before = program.adapt._cache_size(), program.one_by_one._cache_size()
    for count in (1, 6, 64, 65):
        trained.adapt(SUPPORT[::-1], LABELS).predict(pixels(4, shape=(count, 16, 16, 1)))
    assert (program.adapt._cache_size(), program.one_by_one._cache_size()) == before


def test_ten_thousand_queries_are_taken_one_after_the_other(adapted, monkeypatch):
    """Of a generator no more is held than a batch."""
    given, most = 0, 0

    def images():
        nonlocal given
        for _ in range(10_000):
            given += 1
            yield QUERY[0]

    def watch(params, stats, images, count, what):
        nonlocal most, given
        most, given = max(most, given), 0
        return np.zeros((64, 3), np.float32)

    monkeypatch.setattr(adapted._programs, "one_by_one", watch)
    assert adapted.predict(images()).probabilities.shape == (10_000, 3)
    assert most == 64


def test_no_queries(adapted, model):
    assert adapted.predict(QUERY[:0]).probabilities.shape == (0, 3)
    assert model().adapt(SUPPORT, LABELS, transductive=True).predict([]).probabilities.shape == (0, 3)


def test_arrays_of_any_kind(model, adapted):
    expected = adapted.predict(QUERY).probabilities
    as_floats = QUERY.astype(np.float32) / 255
    for images in (as_floats, as_floats.astype(np.float64), list(QUERY), QUERY[..., 0], np.repeat(QUERY, 3, -1)):
        np.testing.assert_array_equal(adapted.predict(images).probabilities, expected)
    mixed = [np.full((40, 20, 3), 100, np.uint8), np.full((9, 31), 100, np.uint8), np.full((16, 16, 1), 100, np.uint8)]
    rows = adapted.predict(mixed).probabilities
    np.testing.assert_array_equal(rows, rows[:1].repeat(3, 0))
    colour = model(channels=3, data__normalize="imagenet").adapt(np.repeat(SUPPORT, 3, -1), LABELS)
    np.testing.assert_array_equal(*(colour.predict(x).probabilities for x in (QUERY, np.repeat(QUERY, 3, -1))))


def test_images_are_normalised_as_in_training(model):
    trained = model(channels=3, data__normalize="imagenet")
    images = pixels(6, shape=(2, 16, 16, 3))
    seen = trained.adapt(np.repeat(SUPPORT, 3, -1), LABELS)._programs._see(images)
    mean, deviation = IMAGENET_STATISTICS
    np.testing.assert_allclose(seen, (images / 255 - mean) / deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (SUPPORT, [0, 1], "5 images, but 2 labels"),
        (SUPPORT, [4] * 5, "all labels are 4; .* takes two at least"),
        (SUPPORT[:0], [], "no images"),
        (SUPPORT, [0, "a", 1, 2, 0], "all of one kind"),
        (SUPPORT.astype(np.int32), LABELS, "image 0 is of type int32"),
        (SUPPORT / 1.0, LABELS, "image 0 has values from .* in \\[0, 1\\]"),
        (SUPPORT * np.float32("nan"), LABELS, "values from nan"),
        (SUPPORT[0], [0] * 16, "at least|image 0"),
        (np.zeros((2, 8, 8, 4), np.uint8), [0, 1], r"shape \[8, 8, 4\]"),
        (np.zeros((2, 0, 8, 1), np.uint8), [0, 1], r"shape \[0, 8, 1\]"),
    ],
)
def test_wrong_images_and_labels(model, images, labels, message):
    with pytest.raises(DataError, match=message):
        model().adapt(images, labels)


def test_cross_validation_is_honest(model):
    """Every image is judged by a model that has not seen it, once; all adaptations are of one size."""
    trained = model(model__head="zero")
    seen, held = [], []

    class Spy:
        look = trained.look

        def adapt(self, images, labels, transductive, steps):
            seen.append(images[:, 0, 0, 0].tolist())
            return self

        def predict(self, images):
            held.append(images[:, 0, 0, 0].tolist())
            return maml_jax.Predictions(np.eye(2, dtype=np.float32), ("a", "b"))

    images = np.broadcast_to(np.arange(7, dtype=np.uint8)[:, None, None, None], (7, 16, 16, 1))
    score = maml_jax.Trained.cross_validate(Spy(), images, list("abbabba"))  # a: 0, 3, 6; b: 1, 2, 4, 5
    assert score == Score(7, 7)
    assert held == [[0, 1], [3, 2], [6, 4], [0, 5]]
    for left, out in zip(seen, held, strict=True):
        assert sorted(left + out) == list(range(7))
    with pytest.raises(DataError, match="two images of each class"):
        trained.cross_validate(SUPPORT, list("aabbc"))


def test_cross_validation_knows_what_is_easy_and_what_is_noise(model):
    trained = model(model__head="zero", inner__encoder_rate=0.05, inner__head_rate=0.05, eval__steps=5)
    noise = pixels(8, shape=(40, 16, 16, 1))
    patterns = pixels(9, shape=(2, 16, 16, 1)) // 2
    easy = np.tile(patterns, (20, 1, 1, 1)) + noise // 8
    labels = [0, 1] * 20
    assert trained.cross_validate(easy, labels) == Score(20, 20)
    assert trained.cross_validate(noise, labels).right < 17


def test_interval_is_wilsons():
    low, high = Score(8, 10).interval95
    np.testing.assert_allclose([low, high], [0.4902, 0.9433], atol=1e-4)


def test_so_many_are_judged_together_at_most(model, monkeypatch):
    monkeypatch.setattr(trained_models, "_MOST_TOGETHER", 3)
    adapted = model().adapt(SUPPORT, LABELS, transductive=True)
    adapted.predict(QUERY[:3])
    with pytest.raises(DataError, match="at most 3 images can be judged together, not 6"):
        adapted.predict(QUERY)
