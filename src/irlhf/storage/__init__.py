"""Files that survive: atomic writes, checkpoints, run directories, and what the last bits depend on."""
