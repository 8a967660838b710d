"""The `octavo` command: one subcommand a file."""
