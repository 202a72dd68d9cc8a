"""Answers: what a box or a service says without a key. No training; networks learn it in wrapping."""
