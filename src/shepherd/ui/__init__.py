"""The user interface: commands, terminal output, report page and chat page."""
