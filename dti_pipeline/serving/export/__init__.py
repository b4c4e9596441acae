"""``dti export``: a trained model as a folder that programs without this package read."""
