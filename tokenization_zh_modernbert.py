"""The tokenizer: byte-level BPE whose merges were learned inside Chinese words, served without a segmenter.

Every character has a token or falls into its bytes, so nothing becomes [UNK] and decoding gives back the text. This class makes
and saves tokenizers. A saved one needs no code: it loads as `PreTrainedTokenizerFast`, with or without `trust_remote_code`,
so that whatever loads it can save it again.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # 0 to 4 in what is trained here

# Where text is cut before any merge, so that answers and entities start and end on token edges:
SPLIT_PATTERN = (
    r"(?<=\p{N})[年月日]"  # the unit of a date behind its number; without this, 1990年代 would be 1990|年代
    r"|\p{Han}+"
    # One space sticks to the Latin word after it, but only behind other ASCII: after Han it is a token of its own.
    r"|(?<=[!-~]) [\p{L}\p{M}&&[^\p{Han}]]+"
    r"|[\p{L}\p{M}&&[^\p{Han}]]+"
    r"|\p{N}{1,4}"
    r"|[!-/:-@\[-`{-~]+"  # ASCII punctuation in runs, as code has it
    r"|([^\s\p{L}\p{M}\p{N}])\1*"  # other marks one by one, where not repeated: 》， is two
    r"|\s+"
)


def build_template(cls_token_id: int, sep_token_id: int) -> processors.TemplateProcessing:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP]."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls_token_id), ("[SEP]", sep_token_id)],
    )


def build_backend() -> Tokenizer:
    """The pipeline around the vocabulary: no normaliser, so that offsets are the text's own; an empty BPE model to train."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = build_template(SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]"))
    return backend


class ZhModernBertTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer with this model's special tokens; token offsets are characters of the text, spaces included."""

    model_input_names = ["input_ids", "attention_mask"]

    # No __init__: transformers 5 rebuilds the backend from vocabulary and merges alone for a subclass that has one.

    @classmethod
    def from_backend(cls, backend: Tokenizer) -> "ZhModernBertTokenizer":
        """A tokenizer around a trained `tokenizers.Tokenizer`, with the special tokens in their roles."""
        roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
        return cls(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves a folder that loads as a plain fast tokenizer on transformers 4.57 and 5, with the same ids."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = self.model_input_names
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return saved
