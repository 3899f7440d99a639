"""Which voxels take part, and their rows."""
