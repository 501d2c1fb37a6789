"""One command a table of docs/benchmarks.md: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
