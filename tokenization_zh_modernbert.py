"""The tokenizer: byte-level BPE whose merges were learned inside Chinese words, served without a segmenter.

A character without a token is cut into its bytes, so nothing becomes [UNK] and decoding gives back the text. This class makes
and saves tokenizers. A saved tokenizer needs no code: it loads as `PreTrainedTokenizerFast`, with or without
`trust_remote_code`, and any library that loads it can save it again.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 in tokenizers that are trained here

# Text is cut into these pieces, and no merge crosses their edges, so that answers and entities start and end on token edges.
SPLIT_PATTERN = (
    r"(?<=\p{N})[年月日]"  # the unit of a date after its number; without this, 1990年代 would be 1990|年代
    r"|\p{Han}+"
    # A space after ASCII belongs to the Latin word that follows. A space after Han is a piece of its own.
    r"|(?<=[!-~]) [\p{L}\p{M}&&[^\p{Han}]]+"
    r"|[\p{L}\p{M}&&[^\p{Han}]]+"
    r"|\p{N}{1,4}"
    r"|[!-/:-@\[-`{-~]+"  # ASCII punctuation in runs, as code has it
    r"|([^\s\p{L}\p{M}\p{N}])\1*"  # runs of one other mark: …… is one piece, 》， are two
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
    """A tokenizer with an empty BPE model to train. It has no normaliser, so offsets are places in the text as given."""
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
    """A fast tokenizer with this model's special tokens. Token offsets count characters of the text, with spaces."""

    model_input_names = ["input_ids", "attention_mask"]
    # Found by name, as in every tokenizer; in this one they are there.
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int

    # No __init__: transformers 5 rebuilds the backend from vocabulary and merges alone for a subclass that has one.

    @classmethod
    def from_backend(cls, backend: Tokenizer) -> "ZhModernBertTokenizer":
        """A tokenizer around a trained `tokenizers.Tokenizer`: [PAD] is its `pad_token`, and so on."""
        roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
        return cls(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves a folder that loads as a plain fast tokenizer on transformers 4.57 and 5, with the same ids."""
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)
        except Exception as error:
            if type(error) is Exception:  # what tokenizers raises where the disk is full
                raise OSError(str(error)) from error
            raise

    def _save_pretrained(self, save_directory, file_names, *args, **kwargs):
        """Corrects the settings in the first of `file_names` before transformers saves, and maybe uploads, the rest."""
        path = Path(file_names[0])
        config = json.loads(path.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = self.model_input_names
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)
