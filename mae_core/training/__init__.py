"""Training: runs, the loop, objectives, execution plans, replicas, and checkpoints."""
