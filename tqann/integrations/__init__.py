"""tqann where its users already are: scikit-learn, LangChain and LlamaIndex, each a module behind an extra of its own.

`tqann.integrations.sklearn`, `.langchain` and `.llama_index`; importing one without its package says what to install.
"""

__all__: list[str] = []
