"""Makes checkpoints from raw interactions."""
