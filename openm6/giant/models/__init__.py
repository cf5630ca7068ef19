"""A model as slots and a frame around them: M6, any module, Hugging Face folders."""
