"""Ask the arms of a run side by side, from one base in memory."""
