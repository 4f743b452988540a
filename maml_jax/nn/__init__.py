"""Encoders, normalisation with statistics as arguments, and the convolution they are built on."""
