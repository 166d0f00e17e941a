"""Benchmark metrics: pure functions on numbers and strings, with no model behind them."""
