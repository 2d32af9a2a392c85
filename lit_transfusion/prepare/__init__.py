"""The command `prepare`: it converts captioned pictures from several formats to a folder of shards."""

from typing import Literal

Kind = Literal["folder", "webdataset", "coco", "hugging_face"]  # of an input

__all__ = ["Kind"]
