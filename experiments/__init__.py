"""The study: a declared grid of trainings over several logs, run, resumed, compared and reported by ``dti study``."""
