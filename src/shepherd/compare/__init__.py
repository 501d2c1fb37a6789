"""Is federation worth it? The same base tuned in several ways, and scored on the same questions."""
