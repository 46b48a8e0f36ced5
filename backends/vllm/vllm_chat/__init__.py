"""Chat and text generation on vLLM. No module in here knows Triton; the backend's model.py does."""
