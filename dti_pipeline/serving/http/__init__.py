"""``dti serve``: a trained model behind HTTP, in one process: an event loop reads requests, a thread scores."""
