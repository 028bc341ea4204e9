"""Which option an answer means: every rule of matching by hand, and the wording of the questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa2va.eval.qa.matching import chosen_option, yes_or_no
from sa2va.eval.qa.rows import choice_prompt, mme_prompt, pope_prompt
from sa2va.eval.qa.tsv import TableQuestion

ANIMALS = {"A": "cat", "B": "dog", "C": "catfish", "D": "None"}


def question(text: str = "What is it?", options: dict[str, str] | None = None, hint: str = "") -> TableQuestion:
    blank = dict.fromkeys(("category", "l2_category", "split", "group", "picture", "image_path"), "")
    return TableQuestion(
        row=1, index="1", question=text, answer="A", options=options or {}, hint=hint, place=None, **blank
    )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B. dog", "B"),
        ("Answer: B", "B"),
        ("The answer is B, since it barks.", "B"),
        ("\nB\n", "B"),
        ("B\uff0e dog", "B"),  # the letter is glued to a full stop that no rule knows, but the text is there
        ("\u7b54\u6848\uff1aB\u3002", "B"),  # full-width colon and full stop
        ("\uff08B\uff09", "B"),
        ("A or B", None),  # two letters and no text
        ("b", None),  # only capitals are letters
        ('"B"', None),
        ("AB", None),
        ("E", None),  # no such option
        ("", None),
    ],
)
def test_one_letter_is_the_choice(answer: str, letter: str | None):
    assert chosen_option(answer, ANIMALS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("dog", "B"),
        ("It is the DOG on the left", "B"),
        ("a cat", "A"),
        ("catfish", None),  # holds "cat" too
        ("dog, not a cat", None),
        ("none of them", "D"),
        ("a horse", None),
        ("A or B: dog", "B"),  # the letters tie, the texts do not
    ],
)
def test_one_contained_text_is_the_choice_where_letters_do_not_tell(answer: str, letter: str | None):
    assert chosen_option(answer, ANIMALS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("A.", "A"),
        ("A. cat", "A"),
        ("A cat", "A"),
        ("A dog", "B"),  # the article
        ("A dog lies on the mat", "B"),
        ("A horse", "A"),  # no text decides, and it is short: a letter with something after it
        ("A horse lies on the mat", None),
        ("The answer is A", "A"),
        ("A is right", "A"),
        ("A and nothing else", "A"),
        ("It is A because nothing else fits", "A"),  # inside a sentence the article has no capital
        ("I see fur. A dog lies there", "B"),
        ("I see fur. A horse lies there", None),
    ],
)
def test_an_article_is_no_choice(answer: str, letter: str | None):
    assert chosen_option(answer, ANIMALS) == letter


def test_options_that_are_not_there_are_no_choice():
    assert chosen_option("C", {"A": "yes", "B": "no"}) is None
    assert chosen_option("A", {}) is None


@given(
    st.sampled_from("ABCD"), st.sampled_from(["{}", "{}.", "({})", "[{}]", "{}:", "#{}", " {} ", "Answer: {}", "{}!"])
)
def test_punctuation_around_a_letter_does_not_matter(letter: str, form: str):
    assert chosen_option(form.format(letter), dict.fromkeys("ABCD", "nothing that is said")) == letter


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("YES, there is.", "Yes"),
        ("No, there isn't", "No"),
        ("There is no dog", "No"),
        ("**Yes**", "Yes"),
        ("yes and no", None),
        ("Yes/No", None),
        ("I do not know", None),  # "know" and "not" are other words
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_or_no(answer: str, said: str | None):
    assert yes_or_no(answer) == said


def test_a_choice_is_asked_with_hint_question_options_and_a_request():
    asked = choice_prompt(question("What is it?", {"A": "cat", "C": "dog"}, hint="Look left."))
    assert asked == (
        "Look left.\nWhat is it?\nA. cat\nC. dog\nAnswer with the option's letter from the given choices directly."
    )


def test_an_open_question_is_asked_for_the_answer():
    assert choice_prompt(question("How many?")) == "How many?\nAnswer the question directly."


@pytest.mark.parametrize(
    ("text", "options", "ending"),
    [
        (
            "\u8fd9\u662f\u4ec0\u4e48\uff1f",
            {"A": "cat"},
            "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002",
        ),
        ("What is this?", {"A": "\u732b"}, "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002"),
        ("\u6709\u51e0\u4e2a\uff1f", {}, "\u8bf7\u76f4\u63a5\u56de\u7b54\u95ee\u9898\u3002"),
    ],
)
def test_chinese_questions_are_asked_in_chinese(text: str, options: dict[str, str], ending: str):
    assert choice_prompt(question(text, options)).split("\n")[-1] == ending


def test_yes_or_no_questions():
    short = "Answer the question using a single word or phrase."
    assert mme_prompt(question("Is it red? Please answer yes or no.")) == (
        f"Is it red? Please answer yes or no. {short}"
    )
    assert pope_prompt(question("Is there a dog?")) == f"Is there a dog? Please answer yes or no. {short}"
    assert pope_prompt(question("A dog? Please answer yes or no.")) == f"A dog? Please answer yes or no. {short}"
