"""The text world: contexts are prompts, trajectories are completions, steps are tokens."""
