"""Folders of photos, explained on any number of processes and resumed where they stopped."""
