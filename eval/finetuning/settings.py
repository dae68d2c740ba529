"""The settings that every fine-tuning script has, and the grid of runs that they mean."""

from dataclasses import dataclass, replace

from zh_modernbert.eval.finetuning.training import Hyperparameters
from zh_modernbert.eval.tasks.registry import Task
from zh_modernbert.train.common.cli import BaseSettings, setting
from zh_modernbert.train.common.devices import default_dtype


@dataclass
class FineTuningSettings(BaseSettings):
    model: str = setting(help="model folder or Hub id")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings")
    random_init: bool = setting(False, "start from random weights of the same architecture: the yardstick of pretraining")
    max_length: int = setting(0, "most tokens of an example; 0 takes the task's", least=0)
    learning_rate: float = setting(0.0, "peak; 0 takes the task's", least=0)
    batch_size: int = setting(0, "examples of an update; 0 takes the task's", least=0)
    num_train_epochs: float = setting(0.0, "passes over the training set; 0 takes the task's", least=0)
    warmup_ratio: float = setting(0.1, "share of the updates that warm up", least=0, most=1)
    weight_decay: float = setting(0.01, "of AdamW", least=0)
    grid: str = setting("", "clue: PaddleNLP's; modern: rates to 1e-4, twice the epochs", choices=("", "clue", "modern"))
    seed: int = setting(42, "the first, of the head's weights and the order", least=0, most=2**32 - 101)
    seeds: int = setting(1, "how many seeds, from seed on", least=1, most=100)
    dtype: str = setting("", "of the computation; on a GPU bfloat16 where empty", ("", "float32", "bfloat16"))
    device_batch_size: int = setting(0, "most examples of an update at once, to save memory; 0: all", least=0, running=True)
    max_train_examples: int = setting(0, "use only so many, drawn the same way each time; 0 uses all", least=0)
    max_eval_examples: int = setting(0, "score only so many, drawn the same way each time; 0 scores all", least=0)
    skip_bad_rows: bool = setting(False, "leave out rows that cannot be used, instead of stopping; they are counted and named")
    data_dir: str = setting("", "folder of a task's files, or of folders of tasks")
    from_hub: bool = setting(False, "download the tasks from the Hub instead")
    split: str = setting("", "the split to score; empty: dev, or where there is none, test")
    script: str = setting("", "bring all texts of a task into this script, by OpenCC", choices=("", "hans", "hant"))
    predictions: bool = setting(False, "also write the official files of predictions, for splits without labels")
    output_dir: str = setting("", "where the fine-tuned model is saved; not at all where empty")
    results_dir: str = setting("results", "where result files go, and files of finished runs, in runs/")


def grid_of(settings: FineTuningSettings, task: Task) -> list[Hyperparameters]:
    """The settings to run, one or a grid. What the user set beats the task's published settings and the grid."""
    base = Hyperparameters(
        learning_rate=settings.learning_rate or task.learning_rate,
        batch_size=settings.batch_size or task.batch_size,
        num_train_epochs=settings.num_train_epochs or task.num_train_epochs,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        dtype=settings.dtype or default_dtype(),
    )
    if not settings.grid:
        return [base]
    grid = task.grid if settings.grid == "clue" else task.grid.modern()
    return [
        replace(base, learning_rate=rate, batch_size=size, num_train_epochs=settings.num_train_epochs or grid.num_train_epochs)
        for rate in ([settings.learning_rate] if settings.learning_rate else grid.learning_rates)
        for size in ([settings.batch_size] if settings.batch_size else grid.batch_sizes)
    ]


def seeds_of(settings: FineTuningSettings) -> list[int]:
    return [settings.seed + i for i in range(settings.seeds)]
