"""stdin and files in; stdout, notices and bars out; the prompt of `gpt2 repl`."""
