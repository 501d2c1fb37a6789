"""What an organisation runs: the server, a site, the coordinator."""
