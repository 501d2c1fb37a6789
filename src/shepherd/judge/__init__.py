"""A language model compares answers: questions, prompts, the endpoint, and the cache of verdicts."""
