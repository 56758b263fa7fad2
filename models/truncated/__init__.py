"""Models with discrete latents, learned by truncated variational EM."""
