"""A project's home made from nothing: its files, and the parameters that a log of one's own asks for."""
