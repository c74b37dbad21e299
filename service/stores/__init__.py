"""Where packs live, one file each."""
