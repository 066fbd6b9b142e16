"""Self-denoising: how much of the noise of labels is left in predictions, and what that rests on."""
