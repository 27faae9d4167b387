"""The conversation about an analyzed slide: its record, what the model is shown, history and transcript."""
