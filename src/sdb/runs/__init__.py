"""Runs: folders, what their parameters name, the jobs behind the commands, grids. The library works without."""
