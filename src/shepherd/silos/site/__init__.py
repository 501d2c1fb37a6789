"""A site of a federation over silos: its settings, policy, audit log and trainer."""
