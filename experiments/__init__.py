"""Entry points: every module here is a command, `python -m experiments.NAME`."""
