"""Safe Distillation Box: everyone can run the model, only key holders can distil it."""
