"""What a person sees: while a run goes on, when it is done, and the data before it. Imports rich."""
