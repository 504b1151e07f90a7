"""The hint at the end of a message about an unknown name."""

from ray_jobs.errors import suggestion


def test_a_suggestion_has_near_names_then_names_that_begin_so_then_all() -> None:
    known = ["greeter", "greeter2", "spam"]
    assert suggestion("spm", known) == "did you mean 'spam'?"
    assert suggestion("greter", known) == "did you mean 'greeter' or 'greeter2'?"
    assert suggestion("sp", known) == "did you mean 'spam'?"
    assert suggestion("zzz", known) == "known: greeter, greeter2, spam"
    assert suggestion("zzz", []) == "known: none"
    assert suggestion("zzz", known, "`kitae models` lists them") == "`kitae models` lists them"
