"""The study: a declared grid of trainings over several logs, run, resumed, paired and reported by one command."""
