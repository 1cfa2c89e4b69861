"""Judging finished pictures: the published checkers, and what to do with what they say."""
