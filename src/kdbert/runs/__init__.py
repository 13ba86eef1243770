"""A recipe becomes a run folder; a saved model is asked and scored."""
