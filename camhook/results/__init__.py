"""What a call returns, and its files."""
