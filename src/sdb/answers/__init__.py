"""Answers: what a box or a service says without a key. No training here; networks learn it in wrapping."""
