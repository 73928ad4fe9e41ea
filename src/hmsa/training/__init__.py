"""Training: losses, the joint stage, the attention stage, scale attention for other networks."""
