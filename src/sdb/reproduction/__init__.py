"""Reproduction: the papers' tables as one command. The engine for many runs is in runs.

published.py and recipes.py import neither torch nor an extra: `experiments/write.py` reads them too.
"""
