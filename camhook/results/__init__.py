"""Result of a call, its numbers and its files."""
