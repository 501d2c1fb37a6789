"""Clients whose data are on this machine, and the simulation of a whole federation of them."""
