"""From rows to packed rows: read, render with a template, split over clients, visit and pack."""
