"""One model, three views: a spread of the architectures that ``make breadth`` compares."""

import pytest

pytest.importorskip("transformers")

from three_views import differences, unexpected

TYPES = {
    "text": ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "nomic_bert", "roberta"),
    "language model": (
        *("bloom", "falcon", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mpt", "olmo2", "phi3", "qwen3"),
    ),
    "experts": ("deepseek_v3", "ernie4_5_moe", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe"),
    "state space": ("falcon_h1", "mamba", "mamba2"),
    "encoder and decoder": ("bart", "t5", "whisper"),
    "vision": ("beit", "convnext", "dinov3_vit", "levit", "segformer", "swin", "vit"),
    "audio and several": ("clip", "fuyu", "llava", "qwen2_5_vl", "wav2vec2", "zamba2"),
}


@pytest.mark.parametrize("model_type", [model_type for types in TYPES.values() for model_type in types])
def test_a_model_its_state_dict_and_its_folder_have_the_same_rows(model_type, tmp_path):
    assert unexpected(model_type, differences(model_type, tmp_path)) == []
