"""Federations over a network (silos): the server, a site, the coordinator."""
