"""What a person sees and types: the commands, the terminal, the report page and the chat page."""
