"""An OpenAI endpoint in front of a served repository; it speaks token ids to ``tensorrt_llm``."""
