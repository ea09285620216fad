"""What a GPT-2 is and how it is used, as frozen data, and the YAML and JSON it is read from."""
