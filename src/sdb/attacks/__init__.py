"""Attacks: what somebody without the key may try. An attack is a small frozen set of parameters and one `run`.

`similar_keys`: what keys near the true one are worth. `key_search`: finding an image key from the weights or by
queries. `retrain`: training the public part of a weight-key box again. Who runs an attack compares what it found with
the truth; the attack never sees it.
"""
