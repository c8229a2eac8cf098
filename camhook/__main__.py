"""``python -m camhook``."""

from camhook.cli import main

main(prog_name="camhook")
