"""Small models of both families, in the variants that a step of generation has to know."""

from lightwell.config.gpt import GPTConfig, ModernConfig

SIZES = {"vocab_size": 31, "context_length": 16, "emb_dim": 24, "n_layers": 3}
CONFIGS = [
    GPTConfig(**SIZES, n_heads=3),
    GPTConfig(**SIZES, n_heads=4, qkv_bias=True, hidden_dim=21, tie_embeddings=False),
    ModernConfig(**SIZES, n_heads=4, n_kv_heads=2, head_dim=10),
    ModernConfig(**SIZES, n_heads=3, hidden_dim=21, tie_embeddings=False, rope_theta=50.0),
]
