"""Training a member: recipes, crops, losses, steps, evaluation, and a state to resume from."""
