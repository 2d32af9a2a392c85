"""Sources of captioned pictures, edits and texts."""

from lit_transfusion.data.sources.base import Source
from lit_transfusion.data.sources.edit_triples import EditTriples
from lit_transfusion.data.sources.image_captions import ImageCaptions
from lit_transfusion.data.sources.mix import Mix
from lit_transfusion.data.sources.openmoji import OpenMoji
from lit_transfusion.data.sources.openmoji_edits import OpenMojiEdits
from lit_transfusion.data.sources.shards import Shards
from lit_transfusion.data.sources.text_corpus import TextCorpus

__all__ = [
    "EditTriples",
    "ImageCaptions",
    "Mix",
    "OpenMoji",
    "OpenMojiEdits",
    "Shards",
    "Source",
    "TextCorpus",
]
