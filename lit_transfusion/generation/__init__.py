"""Text and image generation with a trained net."""
