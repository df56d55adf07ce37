#!/usr/bin/env bash
# Lists the models, asks one, streams an answer, and makes an embedding.
set -euo pipefail

# ask PATH [BODY]. The key is not in the command line, which everybody on the machine can read. --retry waits as
# Retry-After says; --no-buffer shows a stream as it comes.
ask() {
  curl --silent --show-error --fail-with-body --retry 5 --max-time 900 --no-buffer \
    ${SSL_CERT_FILE:+--cacert "$SSL_CERT_FILE"} \
    --header @<(echo "Authorization: Bearer $OPENAI_API_KEY") --header 'Content-Type: application/json' \
    "$OPENAI_BASE_URL/$1" ${2:+--data "$2"}
  echo
}

messages='[{"role": "user", "content": "What is the capital of France?"}]'
ask models
ask chat/completions "{\"model\": \"$MODEL\", \"messages\": $messages, \"max_tokens\": 32, \"temperature\": 0}"
ask chat/completions "{\"model\": \"$MODEL\", \"messages\": $messages, \"max_tokens\": 32, \"temperature\": 0, \"stream\": true}"
ask embeddings "{\"model\": \"$MODEL\", \"input\": \"東京\"}"
