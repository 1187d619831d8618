"""A training step, or a loss and its gradient, as one compiled program."""
