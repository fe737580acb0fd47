"""Tool calls and answer formats of OpenAI's chat: which text a model writes for them, and back.

Nothing here knows of HTTP, servers or token ids: texts and plain dicts go in and come out.

* :mod:`.choice` what a request asks for: a guide for the engine, a reader for the answer
* :mod:`.forms` how models write calls, and which one a chat template teaches
* :mod:`.reader` an answer as it comes: content, calls, arguments
* :mod:`.history` calls of earlier turns, as a template wants them
"""
