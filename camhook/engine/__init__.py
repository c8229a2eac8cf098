"""Where a model is read and how it is run: feature points, heads, tails, plans, captures."""
