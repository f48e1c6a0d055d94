import time

import pytest

from mesh.model.regex import MAX_PATTERN_BYTES, RegexError, compile_regex


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("/a/.*", b"/a/b", True),
        ("/a/.*", b"/ab", False),
        ("/a", b"/a/b", False),
        ("a", b"ba", False),
        (".*", b"\xff\xfe", True),  # bytes that are no UTF-8 must not slip past a rule that says "anything"
        (".*", b"a\nb", True),
        ("\\xC3\\xA9", "é".encode(), True),
        ("(?i)ABC", b"abc", True),
        ("", b"", True),
    ],
)
def test_the_whole_text_must_match(pattern, text, matches):
    assert compile_regex(pattern).fullmatch(text) is matches


def test_a_string_is_taken_as_the_bytes_it_stands_for():
    assert compile_regex("\\xE9").fullmatch("é")
    assert compile_regex("[^/]+").fullmatch("日本")


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("(", "missing )"),
        ("a(?=b)", "(?="),
        (r"(a)\1", "\\1"),
        ("é", "ASCII"),
        ("a" * (MAX_PATTERN_BYTES + 1), "512"),
        ("(((a{10}){10}){10})", "steps"),
        (".{1000}", "steps"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(pattern, complaint):
    with pytest.raises(RegexError, match=r".") as refused:
        compile_regex(pattern)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(x+x+)+y", "(.*)*c"])
def test_a_pattern_that_stops_backtracking_engines_is_run_in_linear_time(pattern):
    regex = compile_regex(pattern)
    started = time.process_time()
    regex.fullmatch(b"a" * 50_000)
    assert time.process_time() - started < 1


def test_equal_patterns_share_one_compiled_form():
    assert compile_regex("/x/[0-9]+") is compile_regex("/x/[0-9]+")
    assert repr(compile_regex("/x")) == "Regex('/x')"
