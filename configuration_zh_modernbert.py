"""Configuration of zh-modernbert: every knob of the encoder's shape, with stock ModernBERT's field names."""

from transformers import PretrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_zh_modernbert.ZhModernBertConfig",
    "AutoModel": "modeling_zh_modernbert.ZhModernBertModel",
    "AutoModelForMaskedLM": "modeling_zh_modernbert.ZhModernBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_zh_modernbert.ZhModernBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_zh_modernbert.ZhModernBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_zh_modernbert.ZhModernBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_zh_modernbert.ZhModernBertForMultipleChoice",
}
LAYER_TYPES = ("full_attention", "sliding_attention")


class ZhModernBertConfig(PretrainedConfig):
    """Shape and behaviour of a `ZhModernBertModel`.

    Fields that stock ModernBERT has too mean the same here. These are different, or need explanation:

    Args:
        initializer_range: standard deviation of the linears' initial weights. 0.02 suits widths of 768 and more. Small models
            need about 1.4 / sqrt(hidden_size), or attention has no signal to learn from for hundreds of updates.
        embedding_initializer_range: the same for the token embeddings; None takes `initializer_range`. The embeddings are the
            decoder too. There the initial weights of rare tokens, which training hardly changes, are noise in every prediction.
        norm_type: `"rmsnorm"`, or `"layernorm"` for stock ModernBERT's weights.
        global_attn_every_n_layers: layer i attends to the whole document if i is a multiple of this, else to the window. Read
            only if `layer_types` is not given.
        layer_types: `"full_attention"` or `"sliding_attention"` for each layer.
        local_attention: the size of the window in tokens, both sides together; token i sees j if
            abs(i - j) <= local_attention // 2.
        global_rope_theta, local_rope_theta: RoPE bases of the full and of the sliding layers.
        rope_scaling: None, or YaRN for the full layers: `{"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 8192}`, optionally with `beta_fast`, `beta_slow`, `attention_factor`
            (https://arxiv.org/abs/2309.00071). Sliding layers see no further than their window, and keep plain RoPE.
        max_position_embeddings: the longest document in tokens; a longer one is refused.
        classifier_pooling: `"cls"` (the document's first token) or `"mean"`.
        sparse_prediction: `ForMaskedLM` computes logits only where labels are set, when labels are given.

    Raises:
        ValueError: no model can be built with the value of a field.
    """

    model_type = "zh_modernbert"
    # transformers 5 has a property of this name that rewrites RoPE settings; this field is our own.
    rope_scaling = None

    def __init__(
        self,
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=1152,
        num_hidden_layers=22,
        num_attention_heads=12,
        hidden_activation="gelu",
        max_position_embeddings=8192,
        initializer_range=0.02,
        initializer_cutoff_factor=2.0,
        embedding_initializer_range=None,
        norm_type="rmsnorm",
        norm_eps=1e-5,
        norm_bias=False,
        global_attn_every_n_layers=3,
        layer_types=None,
        local_attention=128,
        global_rope_theta=160000.0,
        local_rope_theta=10000.0,
        rope_scaling=None,
        attention_bias=False,
        attention_dropout=0.0,
        deterministic_flash_attn=False,
        embedding_dropout=0.0,
        mlp_bias=False,
        mlp_dropout=0.0,
        decoder_bias=True,
        classifier_pooling="cls",
        classifier_dropout=0.0,
        classifier_bias=False,
        classifier_activation="gelu",
        sparse_prediction=False,
        sparse_pred_ignore_index=-100,
        pad_token_id=0,
        unk_token_id=1,
        cls_token_id=2,
        sep_token_id=3,
        mask_token_id=4,
        tie_word_embeddings=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_activation = hidden_activation
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.initializer_cutoff_factor = initializer_cutoff_factor
        self.embedding_initializer_range = embedding_initializer_range
        self.norm_type = norm_type
        self.norm_eps = norm_eps
        self.norm_bias = norm_bias
        self.global_attn_every_n_layers = global_attn_every_n_layers
        self.local_attention = local_attention
        self.global_rope_theta = global_rope_theta
        self.local_rope_theta = local_rope_theta
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.deterministic_flash_attn = deterministic_flash_attn
        self.embedding_dropout = embedding_dropout
        self.mlp_bias = mlp_bias
        self.mlp_dropout = mlp_dropout
        self.decoder_bias = decoder_bias
        self.classifier_pooling = classifier_pooling
        self.classifier_dropout = classifier_dropout
        self.classifier_bias = classifier_bias
        self.classifier_activation = classifier_activation
        self.sparse_prediction = sparse_prediction
        self.sparse_pred_ignore_index = sparse_pred_ignore_index
        self.unk_token_id = unk_token_id
        self.mask_token_id = mask_token_id
        self.check(rope_scaling, layer_types)
        self.layer_types = layer_types or [
            LAYER_TYPES[bool(layer % global_attn_every_n_layers)] for layer in range(num_hidden_layers)
        ]
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__init__(
            pad_token_id=pad_token_id,
            cls_token_id=cls_token_id,
            sep_token_id=sep_token_id,
            bos_token_id=kwargs.pop("bos_token_id", cls_token_id),
            eos_token_id=kwargs.pop("eos_token_id", sep_token_id),
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        self.rope_scaling = rope_scaling

    def check(self, rope_scaling: dict | None, layer_types: list[str] | None) -> None:
        """Raises ValueError for values that no model can have.

        `super().__init__` may rewrite the fields of these names, so the two are given as arguments.
        """

        def require(condition, message):
            if not condition:
                raise ValueError(f"ZhModernBertConfig: {message}")

        heads = self.num_attention_heads
        require(
            heads > 0 and self.hidden_size % heads == 0 and self.hidden_size // heads % 2 == 0,
            f"hidden_size ({self.hidden_size}) must be num_attention_heads ({heads}) times an even head size",
        )
        require(
            self.global_attn_every_n_layers > 0,
            f"global_attn_every_n_layers is {self.global_attn_every_n_layers}; it must be above 0",
        )
        require(self.local_attention >= 0, f"local_attention is {self.local_attention}; it must not be negative")
        require(
            self.norm_type in ("rmsnorm", "layernorm"),
            f"norm_type is {self.norm_type!r}; it must be 'rmsnorm' or 'layernorm'",
        )
        require(
            not (self.norm_type == "rmsnorm" and self.norm_bias),
            "norm_bias=True needs norm_type='layernorm'; RMSNorm has no bias",
        )
        require(
            self.classifier_pooling in ("cls", "mean"),
            f"classifier_pooling is {self.classifier_pooling!r}; it must be 'cls' or 'mean'",
        )
        require(
            not layer_types or (len(layer_types) == self.num_hidden_layers and set(layer_types) <= set(LAYER_TYPES)),
            f"layer_types must name one of {LAYER_TYPES} for each of the {self.num_hidden_layers} layers",
        )
        require(isinstance(rope_scaling, dict | None), f"rope_scaling is {rope_scaling!r}; it must be a mapping")
        if rope_scaling is not None:
            needed = {"rope_type", "factor", "original_max_position_embeddings"}
            known = needed | {"beta_fast", "beta_slow", "attention_factor"}
            numbers = {name: value for name, value in rope_scaling.items() if name != "rope_type"}
            require(
                needed <= set(rope_scaling) <= known
                and rope_scaling["rope_type"] == "yarn"
                and all(isinstance(value, (int, float)) and value > 0 for value in numbers.values()),
                f"rope_scaling is {rope_scaling}; it needs rope_type 'yarn' and {sorted(needed - {'rope_type'})}, "
                f"and may have {sorted(known - needed)}, each a number above 0",
            )

    def to_diff_dict(self):
        """The fields to save; of `rope_scaling`, which transformers 5 warns of wherever it meets it, only what is set."""
        fields = super().to_diff_dict()
        return fields if fields.get("rope_scaling") else {k: v for k, v in fields.items() if k != "rope_scaling"}


ZhModernBertConfig.register_for_auto_class()
