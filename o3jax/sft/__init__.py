"""Supervised fine-tuning: losses, train state and steps, as pure functions."""
