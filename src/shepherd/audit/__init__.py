"""What a trained adapter gives away of the data that it was trained on, found by attacking it."""
