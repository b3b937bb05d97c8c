"""Makes the small model that ships with Spinney: texts, tokenizer, training and export."""
