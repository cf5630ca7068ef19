"""How data enters and leaves the stream: text, images, image codes."""
