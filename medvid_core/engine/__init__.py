"""The generic loops: train, evaluate, predict."""
