"""Tracing: whose answers a suspect learned from. The marks are made in wrapping."""
