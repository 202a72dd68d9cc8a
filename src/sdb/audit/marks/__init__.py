"""Attacks on the mark: thieves of labels who try to lose an account's ties, and the p-value that is left."""
