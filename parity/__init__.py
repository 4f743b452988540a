"""A plain PyTorch MAML and the tools that hold `maml_jax` against it."""
