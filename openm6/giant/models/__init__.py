"""A model as slots and what lies between them: M6's, any module's, Hugging Face folders."""
