"""Where to look and what to trust: candidate intervals from relevance over time."""
