"""The papers' tables as one command: every run's parameters, the grid, and the table with what the papers print.

published.py and recipes.py import neither torch nor an extra: `experiments/write.py` reads them too.
"""
