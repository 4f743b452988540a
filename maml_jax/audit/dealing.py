"""What the audit draws by itself, on the host and from fixed seeds: query sets, label orders, tasks without overlap."""

import itertools
import math

import numpy as np

_ALL_ORDERS = 5  # ways up to which every order of the labels is taken
_RANDOM_ORDERS = 24


def nested(way: int, pool: int, query: int) -> np.ndarray:
    """Which rows of a query set of `pool` images per class are the first `query` of each class, in class order."""
    return (np.arange(way)[:, None] * pool + np.arange(query)).ravel().astype(np.int32)


def imbalanced(seed: int, tasks: int, way: int, pool: int, alpha: float) -> np.ndarray:
    """Query sets whose classes come in Dirichlet(alpha) proportions (Veilleux et al. 2021, arXiv:2204.11181).

    Each has `pool` images in all, whatever the proportions: the number of images of a class is its share of them, the
    largest remainders rounded up. Infinite alpha is as balanced as it can be.

    Args:
      seed: of the draw.
      tasks: how many query sets.
      way: classes.
      pool: images there are of each class.
      alpha: concentration.

    Returns:
      Rows of the query set, int32 `[tasks, pool]`, in class order.
    """
    rng = np.random.default_rng([seed, 1])
    rows = np.empty((tasks, pool), np.int32)
    for task in range(tasks):
        shares = np.full(way, 1 / way) if math.isinf(alpha) else rng.dirichlet(np.full(way, alpha))
        exact = shares * pool
        counts = np.floor(exact).astype(int)
        order = np.lexsort((rng.random(way), -(exact - counts)))  # ties by chance
        counts[order[: pool - counts.sum()]] += 1
        drawn = [c * pool + np.sort(rng.permutation(pool)[:n]) for c, n in enumerate(counts)]
        rows[task] = np.concatenate(drawn)
    return rows


def others(seed: int, tasks: int, queries: int, most: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """For each query two sets of other queries that have none in common, int32 `[tasks, queries, up to most]` each."""
    rng = np.random.default_rng([seed, 2])
    count = min(most, (queries - 1) // 2)
    drawn = np.empty((tasks, queries, 2 * count), np.int32)
    for task, query in itertools.product(range(tasks), range(queries)):
        rest = rng.permutation(queries - 1)[: 2 * count]
        drawn[task, query] = rest + (rest >= query)
    return drawn[..., :count], drawn[..., count:]


def orders(seed: int, way: int) -> np.ndarray:
    """Orders of the labels, int32 `[orders, way]`: all of them up to five ways, 24 random ones beyond; as is first."""
    if way <= _ALL_ORDERS:
        return np.array(list(itertools.permutations(range(way))), np.int32)
    rng = np.random.default_rng([seed, 3])
    return np.stack([np.arange(way), *(rng.permutation(way) for _ in range(_RANDOM_ORDERS - 1))]).astype(np.int32)


def disjoint(seed: int, counts: np.ndarray, way: int, images: int, most: int) -> np.ndarray:
    """Tasks that share no image (arXiv:2409.02850): dealt out until too few classes have enough images left.

    Each takes the classes that have most images left, equal ones by chance.

    Args:
      seed: of the draw.
      counts: images of each class, `[classes]`.
      way: classes of a task.
      images: that it takes of each.
      most: stop after so many tasks.

    Returns:
      Places in the class store, int32 `[tasks, way, images]`.
    """
    rng = np.random.default_rng([seed, 4])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    deck = [starts[c] + rng.permutation(n) for c, n in enumerate(counts)]
    left, tasks = np.array(counts), []
    while len(tasks) < most and (left >= images).sum() >= way:
        classes = rng.permutation(np.lexsort((rng.random(len(left)), -left))[:way])
        tasks.append([deck[c][left[c] - images : left[c]] for c in classes])
        left[classes] -= images
    return np.array(tasks, np.int32).reshape(len(tasks), way, images)
