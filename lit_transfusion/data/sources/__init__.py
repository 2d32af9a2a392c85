"""Sources of pictures and captions."""

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.sources.image_captions import ImageCaptions
from lit_transfusion.data.sources.openmoji import OpenMoji
from lit_transfusion.data.sources.shapes import Shapes

__all__ = ["ImageCaptions", "OpenMoji", "Shapes", "Source"]
