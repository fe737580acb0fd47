"""LoRA adapters: Hugging Face PEFT's folders, checked and in TensorRT-LLM's layout."""
