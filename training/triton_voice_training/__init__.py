"""Training of the small checkpoints that the default run uses: one small world, three models, no downloads."""
