"""Ask a model directory questions through transformers and print its greedy answers.

python -m tools.demo_model.check src/spinney/engine/models/demo
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = (
    "What is a spinney?",
    "What is Spinney?",
    "Why split prefill and decode?",
    "why do you separate prefill from decode",
    "What is prefill?",
    "Explain decode in one sentence.",
    "What is a KV block?",
    "What is the difference between TTFT and ITL?",
    "How can I reduce the TTFT?",
    "What is a gang and why is it useful?",
    "Why should workers sit in one rack?",
    "What happens when a worker dies?",
    "Hello!",
    "Who are you and what can you do?",
    "Tell me a story about a fox.",
    "Tell me a short story.",
    "What does a hedgehog eat?",
    "Where do owls live?",
    "Why does it rain?",
    "What is a hammer used for?",
    "How old can an oak get?",
    "Name three trees.",
    "What is the capital of Portugal?",
    "Write a Python program that prints primes.",
    "What is the meaning of life?",
    "Thanks, bye!",
)


def main() -> None:
    """Print a table of questions and answers."""
    parser = argparse.ArgumentParser(description="Print greedy answers of a model directory.")
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    for question in arguments.questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=arguments.max_tokens, do_sample=False)
        answer = ids[0, prompt["input_ids"].shape[1] :]
        end = "" if answer[-1] == tokenizer.eos_token_id else " [did not end]"
        print(f"? {question}\n= {tokenizer.decode(answer, skip_special_tokens=True)}{end}\n")


if __name__ == "__main__":
    main()
