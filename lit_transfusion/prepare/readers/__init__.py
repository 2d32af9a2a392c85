"""Readers of the input formats of `prepare`. A reader first lists its input, and then gives random access to it."""

from lit_transfusion.prepare.readers.base import Item, Reader
from lit_transfusion.prepare.readers.detect_format import open_reader

__all__ = ["Item", "Reader", "open_reader"]
