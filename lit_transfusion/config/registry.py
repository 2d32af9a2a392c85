"""All classes that YAML and the command line can name by their short class names.

jsonargparse finds a short name among the subclasses that are imported. So a package that adds sources, metrics or
callbacks is imported here, and nowhere else for its names.
"""

import lit_transfusion.data.sources
import lit_transfusion.diffusion
import lit_transfusion.evaluation
import lit_transfusion.latents
import lit_transfusion.model
import lit_transfusion.shapes.captions
import lit_transfusion.shapes.edits
import lit_transfusion.shapes.geneval
import lit_transfusion.shapes.source
import lit_transfusion.training.callbacks
import lit_transfusion.training.fsdp
import lit_transfusion.training.optim  # noqa: F401
