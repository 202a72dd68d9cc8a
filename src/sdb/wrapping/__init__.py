"""Wrapping: the methods that turn a trained network into a box. What a box is stands in box."""
