"""From stored pixels to what the model sees: augmentation and normalisation, on the device."""

import jax
import jax.numpy as jnp

# Mean and standard deviation per channel, of images in [0, 1].
NORMALIZATIONS = {
    "none": (None, None),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each of `[batch, height, width, channels]` left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


AUGMENTATIONS = {"none": lambda key, images: images, "flip": flip}


def prepare(key: jax.Array, images: jax.Array, augmentation: str, normalization: str) -> jax.Array:
    """Turns stored images into model input.

    Args:
      key: for the augmentation's draws.
      images: uint8 `[batch, height, width, channels]`.
      augmentation: a key of `AUGMENTATIONS`.
      normalization: a key of `NORMALIZATIONS`.

    Returns:
      float32 of the same shape: in [0, 1], less the mean and over the deviation where normalised.
    """
    images = images.astype(jnp.float32) / 255
    images = AUGMENTATIONS[augmentation](key, images)
    mean, deviation = NORMALIZATIONS[normalization]
    return images if mean is None else (images - jnp.array(mean)) / jnp.array(deviation)
