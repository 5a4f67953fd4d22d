"""The training core: one loop for every method, with evaluation, checkpoints and results."""
