"""Asks a model, streams an answer, and makes embeddings. Address and key are taken from the environment."""

import os

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

model = os.environ["MODEL"]
# ChatOpenAI sends its own max_tokens under a name that the servers do not know.
chat = ChatOpenAI(model=model, temperature=0, timeout=900, max_retries=5, extra_body={"max_tokens": 32})

print("answer:", chat.invoke("What is the capital of France?").content)

pieces = 0
for chunk in chat.stream("日本の首都はどこですか。"):
    pieces += 1
    print(chunk.content, end="", flush=True)
print(f"\nstreamed in {pieces} pieces")


class MeanEmbeddings(OpenAIEmbeddings):
    """One vector per text, where the model gives one per token."""

    def embed_documents(
        self, texts: list[str], chunk_size: int | None = None, **options: object
    ) -> list[list[float]]:
        """The mean of the vectors of each text."""
        per_text = super().embed_documents(texts, chunk_size, **options)
        return [[sum(column) / len(column) for column in zip(*vectors, strict=True)] for vectors in per_text]


# check_embedding_ctx_length=False: texts are sent as they are, not as numbers of OpenAI's own tokens.
embeddings = MeanEmbeddings(model=model, check_embedding_ctx_length=False, timeout=900, max_retries=5)
vectors = embeddings.embed_documents(["東京", "Paris"])
print("embeddings:", len(vectors), "texts,", len(vectors[0]), "numbers each, first", vectors[0][0])
