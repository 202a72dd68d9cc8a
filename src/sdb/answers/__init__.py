"""Answers: what a box says without a key, and a service to an account, and the ledger of it. No training."""
