"""Draw the two OpenMoji grids of docs/data.md: 16 training concepts, and 16 held-out concepts.

python docs/openmoji_grid.py runs/openmoji/checkpoints/last.ckpt docs/images/openmoji
"""

import sys
from pathlib import Path

from lit_transfusion.data.sources import OpenMoji
from lit_transfusion.generation.engine import draw
from lit_transfusion.generation.pictures import captioned_grid, save
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling

checkpoint, output = sys.argv[1:]
pipeline = Pipeline.from_pretrained(checkpoint)
source = OpenMoji(image_size=pipeline.image_size)
for name, part, indices in (
    ("trained", source.split("train"), range(5, 1400, 90)),
    ("held_out", source.split("val"), range(3, 159, 10)),
):
    captions = [part[index].captions[0] for index in indices]
    drawn = draw(pipeline, captions, Sampling("ddim", num_inference_steps=50, guidance_scale=2), cut=True)
    print(save(captioned_grid(drawn, captions), Path(f"{output}_{name}.png")))
