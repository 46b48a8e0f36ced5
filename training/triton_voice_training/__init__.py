"""Training of the small checkpoints that the default run uses: one small world, three models, no downloads."""

import sys

from triton_voice.paths import project_root

# The serving engine, whose reading of texts is trained on, is no installed package: it lies beside its model.py.
_ENGINE = str(project_root() / "model_repository" / "magpie" / "1")
if _ENGINE not in sys.path:
    sys.path.append(_ENGINE)
