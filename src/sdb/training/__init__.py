"""Training: the loop, its optimizers, repeated views, evaluation. The loss of a step comes from outside."""
