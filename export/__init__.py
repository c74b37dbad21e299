"""Turns checkpoints into bundles and packs, and puts packs into stores."""
