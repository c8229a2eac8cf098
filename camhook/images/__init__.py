"""Photos, their preprocessing and batches, and maps upsampled to the photo's pixels."""
