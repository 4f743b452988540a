"""Configurations; see `default.py`."""
