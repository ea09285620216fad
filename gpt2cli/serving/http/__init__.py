"""An HTTP server that speaks OpenAI's completions API."""
