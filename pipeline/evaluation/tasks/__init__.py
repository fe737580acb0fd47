"""Multiple-choice questions, answered by log-likelihood exactly as EleutherAI's lm-eval does it."""
