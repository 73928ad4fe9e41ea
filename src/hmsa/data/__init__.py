"""Images and labels: from files to tensors. Knows no model and no loss."""
