"""Scoring of candidates with a trained model: from a file, line by line, or as an object in a program."""
