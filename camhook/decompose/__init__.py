"""Linear algebra of a tail: linearisation, maps and their sum, without knowledge of models."""
