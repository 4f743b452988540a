"""Parameters by name: a leaf's name is its path, such as 'encoder/block1/conv/kernel'."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def name_of(path: tuple) -> str:
    """The name of a leaf from the key path that `jax.tree_util` gives for it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: PyTree) -> list[str]:
    """The names of all leaves, in the tree's order."""
    return [name_of(path) for path, _ in jax.tree.leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Applies `function(name, leaf)` to every leaf; with others of the same structure, also to theirs beside it."""
    return jax.tree.map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *others)


def partition(tree: PyTree, predicate: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Splits a tree into the leaves whose name fulfils `predicate` and the others, each with None for the rest."""
    chosen = map_named(lambda name, leaf: leaf if predicate(name) else None, tree)
    others = map_named(lambda name, leaf: None if predicate(name) else leaf, tree)
    return chosen, others


def merge(left: PyTree, right: PyTree) -> PyTree:
    """Undoes `partition`: takes each leaf from the side that has it."""
    return jax.tree.map(lambda l, r: r if l is None else l, left, right, is_leaf=lambda x: x is None)


def by_name(tree: PyTree) -> dict[str, Any]:
    """All leaves by their names."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def map_prefix(function: Callable[[Any, PyTree], PyTree], prefix: PyTree, tree: PyTree) -> PyTree:
    """Applies `function(leaf, part)` to every leaf of `prefix` and the part of the tree that stands at its place.

    Raises:
      ValueError: `prefix` is not the upper part of the tree.
    """
    structure = jax.tree.structure(prefix)
    try:
        parts = structure.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"a tree with entries {', '.join(names(prefix))} does not fit one with {', '.join(names(tree))}: give one "
            "value for all, or a tree whose branches are those of the other, down to any depth"
        ) from error
    return structure.unflatten(function(leaf, part) for leaf, part in zip(jax.tree.leaves(prefix), parts, strict=True))
