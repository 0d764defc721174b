"""Sources of problems: one small class per kind, each with a data set per split.

Read `ProblemSource` first; the others are independent of each other. A source has no part in
tokens, prompts or data ranks (``prompts.py`` does that). It needs no gold answers: label-free
training reads the question alone.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rlif_lightning.data.described import Described
from rlif_lightning.data.generated_text import reasoning_gym_task, split_of, value_of
from rlif_lightning.data.local_files import as_texts, at_home, is_saved, open_files, open_saved

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

Split = Literal["train", "validation"]
WITHOUT_VALIDATION = (
    "; where there is one split alone, take slices (train_split='train[:90%]',"
    " validation_split='train[90%:]'), or train without validation (trainer.limit_val_batches=0)"
)


class ProblemSource(Described, ABC):
    """A data set per split; subclass it and name the class path in a config for your own data.

    Example:
        >>> from datasets import Dataset
        >>> class Capitals(ProblemSource):
        ...     def load(self, split):
        ...         problem = {"question": "Capital of France?", "answer": "Paris"}
        ...         return Dataset.from_list([problem])
        >>> Capitals().load("train")[0]["answer"]
        'Paris'
    """

    @abstractmethod
    def load(self, split: Split) -> Dataset:
        """Return one split: the same rows in the same order in every call and every process.

        Args:
            split: "train" or "validation".

        Returns:
            A data set with one row per problem and any columns.
        """

    def has(self, split: Split) -> bool:
        """Return whether the source has the split; without validation, training has none."""
        return True

    def order(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray | None:
        """Return the order of the training problems in an epoch; None = shuffled.

        A curriculum overrides it. The result depends on the arguments alone, or a run could not be
        resumed.

        Args:
            rows: ``[K]`` row numbers of the problems in use.
            seed: of the order.
            epoch: from 0 on.

        Returns:
            A permutation of 0..K-1.
        """
        return None


class GeneratedProblems(ProblemSource):
    """Problems that a program makes up; both splits have the same mix and share none.

    Args:
        size: number of training problems (repeats are possible where few problems exist).
        validation_size: number of validation problems.
        seed: another number draws other problems.
    """

    def __init__(self, size: int = 4096, validation_size: int = 256, seed: int = 0) -> None:
        if size < 1 or validation_size < 1:
            raise ValueError(
                f"size={size}, validation_size={validation_size}: both must be at least 1"
            )
        self.sizes = {"train": size, "validation": validation_size}
        self.seed = seed


class ArithmeticProblems(GeneratedProblems):
    """Generated sums such as ``3+4+5=``, with their answers; nothing is downloaded.

    A problem belongs to the validation split if the CRC-32 of its text is divisible by 8, and to
    the training split otherwise, so that the splits share no problem. Problem i of a split depends
    on (seed, split, i) alone.

    Args:
        min_terms: smallest number of terms of a problem, at least 1.
        max_terms: largest number of terms of a problem.
        digits: largest number of decimal digits of a term (1: 0-9, 2: 0-99).
        operators: the operators to draw from, any of "+", "-" and "*" ("*" binds tighter, as
            usual).
        size, validation_size, seed: as for :class:`GeneratedProblems`.

    Raises:
        ValueError: an argument is out of range, or too few problems of this kind exist to fill both
            splits.
    """

    def __init__(
        self,
        min_terms: int = 3,
        max_terms: int = 5,
        digits: int = 1,
        operators: str = "+",
        size: int = 4096,
        validation_size: int = 256,
        seed: int = 0,
    ) -> None:
        if not 1 <= min_terms <= max_terms:
            raise ValueError(
                f"min_terms={min_terms}, max_terms={max_terms}: need 1 <= min_terms <= max_terms"
            )
        if digits < 1:
            raise ValueError(f"digits={digits}: a term needs at least 1 digit")
        if not operators or set(operators) - set("+-*"):
            raise ValueError(f'operators={operators!r}: give one or more of "+", "-" and "*"')
        super().__init__(size, validation_size, seed)
        self.min_terms, self.max_terms = min_terms, max_terms
        self.digits, self.operators = digits, operators

    def load(self, split: Split) -> Dataset:
        """Draw the split, with columns ``question`` ("3+4+5=") and ``answer`` ("12", or "-3")."""
        from datasets import Dataset

        questions = [self._draw(split, i) for i in range(self.sizes[split])]
        return Dataset.from_dict(
            {"question": questions, "answer": [value_of(question[:-1]) for question in questions]}
        )

    def _draw(self, split: Split, i: int) -> str:
        rng = random.Random(f"{self.seed}/{split}/{i}")
        for _ in range(1000):
            terms = [
                str(rng.randrange(10**self.digits))
                for _ in range(rng.randint(self.min_terms, self.max_terms))
            ]
            question = (
                terms[0] + "".join(rng.choice(self.operators) + term for term in terms[1:]) + "="
            )
            if split_of(question) == split:
                return question
        raise ValueError(
            f"max_terms={self.max_terms}, digits={self.digits}: found no problem for the {split}"
            " split in 1000 draws, too few problems of this kind exist; raise max_terms or digits"
        )


class HubDataset(ProblemSource):
    """A data set of the Hugging Face hub, a local folder like one, or what ``save_to_disk`` wrote.

    Code in a data set is never run.

    Args:
        name: hub name such as "openai/gsm8k", or the path of a local folder.
        subset: the data set's configuration ("main"), if it has several.
        train_split: the split to train on; slices such as "train[:90%]" work. A single data set
            that ``save_to_disk`` wrote is called "train".
        validation_split: the split to validate on, such as "train[90%:]".
        revision: branch, tag or commit of the data set; a commit makes a run repeatable.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        train_split: str = "train",
        validation_split: str = "test",
        revision: str | None = None,
    ) -> None:
        self.name, self.subset, self.revision = at_home(name), subset, revision
        self.splits = {"train": train_split, "validation": validation_split}

    def load(self, split: Split) -> Dataset:
        """Download (or take from the cache) and open one split.

        Raises:
            ValueError: the data set, its subset or its split cannot be found or reached.
        """
        from datasets import load_dataset

        wanted = self.splits[split]
        try:
            if is_saved(Path(self.name)):
                return open_saved(Path(self.name), wanted)
            return load_dataset(self.name, self.subset, split=wanted, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"name={self.name!r}, subset={self.subset!r}, {split}_split={wanted!r} cannot be"
                f" loaded: {error}; check the three and the network, or give a local folder or"
                f" LocalFiles{WITHOUT_VALIDATION if split == 'validation' else ''}"
            ) from error


class LocalFiles(ProblemSource):
    """Files of your own: JSON, JSON lines, Parquet or CSV, by their suffix.

    In CSV every value is a text.

    Args:
        train: path, or list of paths of one format, of the training problems.
        validation: the same for the validation problems.
    """

    FORMATS: ClassVar = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}

    def __init__(
        self, train: str | list[str] | None = None, validation: str | list[str] | None = None
    ) -> None:
        self.paths = {"train": as_texts(train), "validation": as_texts(validation)}

    def has(self, split: Split) -> bool:
        """Return whether files were given for the split."""
        return bool(self.paths[split])

    def load(self, split: Split) -> Dataset:
        """Open the files of one split.

        Raises:
            ValueError: no files were given for the split, or one is missing, empty, of an unknown
                format or malformed (names the line).
        """
        given = self.paths[split]
        paths = [given] if isinstance(given, str) else given or []
        if not paths:
            remedy = ", or train without one: trainer.limit_val_batches=0"
            raise ValueError(
                f"{split}={given!r}: no file is given for the {split} split; name one in"
                f" LocalFiles.{split}{remedy if split == 'validation' else ''}"
            )
        for path in paths:
            self._check(split, Path(path))
        formats = {self.FORMATS[Path(path).suffix] for path in paths}
        if len(formats) > 1:
            raise ValueError(
                f"{split}={paths}: files of several formats {sorted(formats)}; convert them to one"
            )
        return open_files(formats.pop(), [Path(path) for path in paths])

    def _check(self, split: Split, path: Path) -> None:
        if path.suffix not in self.FORMATS:
            raise ValueError(
                f"{split}={str(path)!r}: unknown suffix {path.suffix!r}; known are"
                f" {sorted(self.FORMATS)}"
            )
        if not path.is_file():
            here = f"(current folder: {Path.cwd()})"
            raise ValueError(f"{split}={str(path)!r}: no such file {here}; correct the path")
        if path.stat().st_size == 0:
            raise ValueError(
                f"{split}={str(path)!r}: the file is empty; give a file with one problem per row"
            )


class ReasoningGym(GeneratedProblems):
    """Generated problems of the optional package reasoning-gym (Apache-2.0, about 100 tasks).

    Both splits have the same mix of problems and share none: each text belongs to one split (see
    `ArithmeticProblems`). The splits would also share none if validation left out what occurs in
    training. But then validation would have only problems that are rarely drawn, which are hard.

    Args:
        task: the task's name in reasoning-gym, such as "chain_sum".
        size, validation_size, seed: as for :class:`GeneratedProblems`.
        config: settings of the task, such as ``{min_terms: 2, max_terms: 2}`` for "chain_sum".
    """

    # reasoning-gym seeds its problem i with seed + i, so seeds of streams must differ by more than
    # the length of any split.
    STREAM = 2**32

    def __init__(
        self,
        task: str,
        size: int = 4096,
        validation_size: int = 256,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(size, validation_size, seed)
        self.task = task
        self.config = config or {}

    def load(self, split: Split) -> Dataset:
        """Generate one split, with columns ``question`` and ``answer``.

        Raises:
            ValueError: reasoning-gym is not installed, or does not have the task or its settings,
                or the task has too few different problems to fill both splits.
        """
        from datasets import Dataset

        size, rows = self.sizes[split], []
        draws = 32 * size + 1000  # four times as many as the smaller split needs
        stream = 2 * self.seed + (split == "validation")
        generator = reasoning_gym_task(self.task, self.config, draws, stream * self.STREAM)
        for i in range(draws):
            problem = generator[i]
            if split_of(problem["question"]) == split:
                rows.append({"question": problem["question"], "answer": problem["answer"]})
            if len(rows) == size:
                return Dataset.from_list(rows)
        raise ValueError(
            f"task={self.task!r}, config={self.config}: {draws} draws gave {len(rows)} problems"
            f" for the {split} split instead of {size}; this task has too few different problems,"
            " widen its config"
        )
