"""Folders of photos, explained by many processes at once, resumed where they stopped."""
