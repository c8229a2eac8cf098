"""``python -m camhook``."""

from camhook.cli.main import main

main(prog_name="camhook")
