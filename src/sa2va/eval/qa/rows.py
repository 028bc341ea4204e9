"""The question benchmarks that are known by name: their files, how they are asked and counted, and published numbers.

Questions are put word for word as the released models were measured (the InternVL adapter of VLMEvalKit). Published:
Sa2VA's authors (arXiv 2501.04001 v3, tables 7, 8 and 14, and the model cards), measured with VLMEvalKit of September
2024, where an unclear answer may have been read by a language model.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from sa2va.data.annotations.layout import first_existing, require_files
from sa2va.eval.benchmark import Benchmark, BenchmarkSpec
from sa2va.eval.qa import counting
from sa2va.eval.qa.matching import chosen_option, yes_or_no
from sa2va.eval.qa.task import PromptStyle, QuestionBenchmark, QuestionTask
from sa2va.eval.qa.tsv import QuestionFile, TableQuestion
from sa2va.processing.requests import CHOICE_REQUEST, OPEN_QUESTION_REQUEST, SHORT_ANSWER_REQUEST, YES_NO_REQUEST

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: Folders under a data root where question files are looked for; the first is VLMEvalKit's own.
FOLDERS = ("LMUData", "vlmevalkit", ".")
_OTHER = "Other Answers"


def choice_prompt(question: TableQuestion) -> str:
    """Hint, question and options a line each, then the request for a letter; in Chinese where any of it is Chinese."""
    lines = [question.hint] if question.hint else []
    lines += [question.question, *(f"{letter}. {text}" for letter, text in question.options.items())]
    english, chinese = CHOICE_REQUEST if question.options else OPEN_QUESTION_REQUEST
    text = "\n".join(lines)
    return f"{text}\n{chinese if _CHINESE.search(text) else english}"


def mme_prompt(question: TableQuestion) -> str:
    """MME's questions ask for yes or no themselves."""
    return f"{question.question} {SHORT_ANSWER_REQUEST}"


def pope_prompt(question: TableQuestion) -> str:
    """The released evaluation had no wording for POPE; this is that of its other yes-no sets, "yes or no" said once."""
    asks = "yes or no" in question.question.lower()
    return " ".join([question.question, *([] if asks else [YES_NO_REQUEST]), SHORT_ANSWER_REQUEST])


def match_choice(question: TableQuestion, text: str) -> str | None:
    """The letter an answer stands for. A question without options has the right answer against all others."""
    if question.options:
        return chosen_option(text, question.options)
    letter = chosen_option(text, {"A": question.answer, "B": _OTHER})
    return {"A": question.answer, "B": _OTHER}.get(letter or "")


def match_yes_no(question: TableQuestion, text: str) -> str | None:
    """``"Yes"``, ``"No"`` or unclear."""
    return yes_or_no(text)


_LETTER = (
    "The question with its lettered options; an answer counts when the one letter, else the one option's text, that it "
    "has is right; one that has several or none is wrong."
)
CHOICE = PromptStyle(
    prompt=choice_prompt,
    match=match_choice,
    count=counting.accuracy,
    group=counting.accuracy,
    headline="accuracy",
    protocol=f"{_LETTER} Accuracy over questions.",
)
CIRCULAR = PromptStyle(
    prompt=choice_prompt,
    match=match_choice,
    count=counting.circular,
    group=counting.circular,
    headline="accuracy",
    protocol=f"{_LETTER} CircularEval: a question counts only when it is right in every rotation of its options.",
    circular=True,
)
MME = PromptStyle(
    prompt=mme_prompt,
    match=match_yes_no,
    count=counting.mme,
    group=counting.mme_task,
    headline="perception",
    protocol=(
        "Yes-or-no questions, two per picture. A task scores its accuracy (acc) plus the share of pictures with both "
        "questions right (acc+); perception is the sum over 10 tasks, cognition over 4. Times 100 they are the printed "
        "scores, at most 2000 and 800. An answer with both or neither of the two words is wrong."
    ),
)
POPE = PromptStyle(
    prompt=pope_prompt,
    match=match_yes_no,
    count=counting.pope,
    group=counting.yes_f1,
    headline="f1",
    protocol=(
        "Is an object there? Yes is the positive class; F1, precision, recall and accuracy over the random, popular "
        "and adversarial questions together, and of each kind. An answer with both or neither of the two words is "
        "wrong, and no Yes."
    ),
    categories=counting.several_categories,
)


_MODELS = (
    *("Sa2VA-1B", "Sa2VA-4B", "Sa2VA-8B", "Sa2VA-26B"),
    *("Sa2VA-InternVL3-2B", "Sa2VA-InternVL3-8B", "Sa2VA-InternVL3-14B"),
    *("Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen2_5-VL-7B", "Sa2VA-Qwen3-VL-4B"),
)


def _of_models(*scores: float) -> dict[str, float]:
    return dict(zip(_MODELS, scores, strict=True))


_PUBLISHED = {
    "mmbench-dev-en": _of_models(71.9, 81.8, 84.4, 85.8, 79.8, 83.0, 84.3, 78.4, 84.5, 86.3),
    "mme": _of_models(1504, 1691, 1690, 1698, 1631, 1743, 1746, 1533, 1552, 1660),
    "seedbench-img": _of_models(71.0, 74.9, 76.5, 78.3, 73.9, 76.2, 76.6, 73.9, 75.0, 77.3),
    "mmstar": _of_models(48.6, 57.9, 62.4, 67.0, 59.2, 65.9, 67.4, 57.7, 62.3, 66.3),
    "ai2d": _of_models(69.2, 81.4, 82.7, 85.7, 77.1, 84.3, 85.2, 81.1, 84.5, 85.4),
    # Measured on the paper's first models, which were never released.
    "mmmu": {"Sa2VA-4B (paper, InternVL2)": 46.2, "Sa2VA-8B (paper, InternVL2)": 44.7},
    "scienceqa": _of_models(89.9, 96.8, 97.4, 98.4, 93.7, 97.5, 98.7, 80.3, 87.9, 91.6),
}


def _task(
    name: str, title: str, stem: str, style: PromptStyle, *md5: str, split: str = "", folder: str = "VLMEval"
) -> QuestionTask:
    origin = f"https://opencompass.openxlab.space/utils/{folder}/{stem}.tsv"
    return QuestionTask(name, title, f"{stem}.tsv", style, split, md5, origin)


_MMBENCH, _SEED, _SQA = (f"benchmarks/{name}" for name in ("MMBench", "SEEDBench", "ScienceQA"))
_MD5_EN, _MD5_CN = "b6caf1133a01c6bb705cf753bb527ed8", "08b8fc3324a5ed74155350f57be69fbd"
_MD5_MMMU = ("521afc0f3bf341e6654327792781644d", "585e8ad75e73f75dcad265dfd0417d64")
TASKS: tuple[QuestionTask, ...] = (
    _task("mmbench-dev-en", "MMBench DEV EN", "MMBench_DEV_EN", CIRCULAR, _MD5_EN, split="dev", folder=_MMBENCH),
    _task("mmbench-dev-cn", "MMBench DEV CN", "MMBench_DEV_CN", CIRCULAR, _MD5_CN, split="dev", folder=_MMBENCH),
    _task("mme", "MME perception", "MME", MME, "b36b43c3f09801f5d368627fb92187c3"),
    _task("pope", "POPE F1", "POPE", POPE, "c12f5acb142f2ef1f85a26ba2fbe41d5"),
    _task("seedbench-img", "SEEDBench IMG", "SEEDBench_IMG", CHOICE, "68017231464752261a2526d6ca3a10c0", folder=_SEED),
    _task("mmstar", "MMStar", "MMStar", CHOICE, "e1ecd2140806c1b1bbf54b43372efb9e"),
    _task("ai2d", "AI2D TEST", "AI2D_TEST", CHOICE, "0f593e0d1c7df9a3d69bf1f947e71975"),
    _task("mmmu", "MMMU validation", "MMMU_DEV_VAL", CHOICE, *_MD5_MMMU, split="validation"),
    _task("scienceqa", "ScienceQA TEST", "ScienceQA_TEST", CHOICE, "e42e9e00f9c59a80d8a5db35bc32b71f", folder=_SQA),
)


def task_files(task: QuestionTask, root: Path) -> dict[Path, str]:
    """The file of a task under a data root, and where it comes from."""
    return {first_existing([Path(root) / folder / task.file for folder in FOLDERS]): task.origin}


def open_task(task: QuestionTask, root: Path) -> Benchmark:
    """A task's benchmark from its file under a data root.

    Raises:
        MissingData: the file is not there. ValueError: it is malformed.
    """
    files = task_files(task, root)
    require_files(task.name, files)
    return QuestionBenchmark(task, QuestionFile(next(iter(files))))


def _row(task: QuestionTask) -> BenchmarkSpec:
    return BenchmarkSpec(
        name=task.name,
        open=partial(open_task, task),
        files=partial(task_files, task),
        published=_PUBLISHED.get(task.name, {}),
        title=task.title,
        unit="points" if task.style is MME else "percent",
    )


#: Name -> row. MME's published numbers are perception scores; POPE and the Chinese MMBench have none.
QA_ROWS: dict[str, BenchmarkSpec] = {task.name: _row(task) for task in TASKS}
