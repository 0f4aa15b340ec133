"""What others would serve: Hugging Face's BLIP behind LitServe and behind Ray Serve, side by side."""
