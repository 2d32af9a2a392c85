"""What pictures with captions may come in. Each reader lists its input first, and reads any item of it when asked."""

from lit_transfusion.prepare.readers.base import Item, Reader
from lit_transfusion.prepare.readers.detect_format import KINDS, open_reader

__all__ = ["KINDS", "Item", "Reader", "open_reader"]
