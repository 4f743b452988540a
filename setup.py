"""What `pyproject.toml` cannot say: the folder of configurations goes into the package as `maml_jax.presets`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["maml_jax*", "parity*"]), "maml_jax.presets"],
    package_dir={"maml_jax.presets": "configs"},
)
