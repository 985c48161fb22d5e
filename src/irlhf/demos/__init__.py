"""Demos: each module has ``main(*, seed=0, quick=False) -> dict`` that prints, and returns the numbers it printed."""
