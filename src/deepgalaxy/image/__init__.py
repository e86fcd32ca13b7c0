"""From snapshots, or from a file, to an image that the model can read."""
