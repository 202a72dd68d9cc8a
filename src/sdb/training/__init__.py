"""Training: the loop, its optimizers, repeated views, and evaluation. The loss of a step comes from outside."""
