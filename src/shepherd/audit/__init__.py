"""What an adapter, a round's mean or one client's update gives away, found by attacking it."""
