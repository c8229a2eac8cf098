"""Photos to model inputs, and maps back to the photo's pixels."""
