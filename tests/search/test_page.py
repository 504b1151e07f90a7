"""The table and the page of a search: complete, escaped, and correct while it runs."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from ray_jobs.search.page import page, table
from ray_jobs.search.records import Problem
from ray_jobs.search.standing import Standing
from ray_jobs.sharing.segments import Result, TrialSegment
from tests.search.problems import make_problem, outcome
from tests.search.simulation import Simulation, finish

SPENT = {"wall": 0.5, "worker": 1.5}
EVIL = "<script>alert(1)</script>"


def full_outcome(run: TrialSegment) -> Result:
    """An outcome with the losses of every step, tokens and seconds. Trial 4 runs out of memory."""
    result = outcome(run, "out_of_memory" if run.trial == 4 else "ok")
    losses = tuple(3.0 / (step + 1) for step in range(run.until))
    return result.model_copy(update={"tokens": 1000 * run.until, "seconds": 2.0, "losses": losses})


def make_search(search: dict[str, Any] | None = None) -> tuple[Problem, dict[str, Result], Standing]:
    """A search that has ended."""
    problem = make_problem(search)
    now, results, _ = finish(problem, make=full_outcome)
    return problem, results, now


def make_page(problem: Problem, results: dict[str, Result], now: Standing, title: str = "greeter-1") -> str:
    return page(problem, results, now, SPENT, title=title)


def traces(html: str, key: str) -> list[dict[str, Any]]:
    """The traces of a figure of the page."""
    start = re.search(rf'Plotly\.newPlot\(\s*"{key}",\s*', html)
    assert start is not None, f"the page has no figure {key}"
    found: list[dict[str, Any]] = json.JSONDecoder().raw_decode(html, start.end())[0]
    return found


def lines_of(text: str) -> list[list[str]]:
    """The cells of a table without its first and last line."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:-1]]


def test_the_table_has_the_winner_first_and_the_cost_last() -> None:
    problem, results, now = make_search()
    assert now.winner is not None
    text = table(problem, results, now)
    first, second, *rest = lines_of(text)
    both = [results[f"{now.winner.trial:04d}-{end}"].loss or 0.0 for end in ("2", "again")]
    rate = f"{now.winner.params['learning_rate']:.3g}"
    order = str(1 + list(results).index(f"{now.winner.trial:04d}-2"))
    assert first[:7] == [str(now.winner.trial), order, "3/3", "27", f"{both[0]:.4f}", f"{sum(both) / 2:.4f}", rate]
    assert first[-1] == "won"
    assert (int(second[0]), second[-1]) == (now.finalists[1], "finalist")
    reached = [line[2] for line in rest]
    assert reached == sorted(reached, reverse=True)
    deepest = [float(line[4]) for line in rest if line[2] == "1/3"]
    assert len(deepest) > 2
    assert deepest == sorted(deepest)
    assert rest[0][-1].startswith("stopped at rung")
    tokens = sum(result.tokens for result in results.values())
    assert text.splitlines()[-1] == (
        f"9 trials, {len(results)} segments, {tokens:,} tokens, {2 * len(results)} worker-seconds; "
        "sampling ended: every trial has run"
    )


def test_the_table_shows_at_most_the_limit_and_counts_the_rest() -> None:
    problem, results, now = make_search()
    assert now.winner is not None
    lines = table(problem, results, now, limit=2).splitlines()
    assert len(lines) == 5
    assert lines[1].split()[0] == str(now.winner.trial)
    assert lines[3] == "and 7 more"
    assert "more" not in table(problem, results, now, limit=9)


def test_an_accuracy_is_shown_without_its_sign() -> None:
    problem, results, now = make_search({"metric": "token_accuracy"})
    values = [float(line[4]) for line in lines_of(table(problem, results, now)) if line[-1] == "finished"]
    assert all(0 < value < 1 for value in values)
    html = make_page(problem, results, now)
    (cost,) = traces(html, "cost")
    assert cost["y"] == sorted(cost["y"])
    (tried,) = traces(html, "tried")
    assert tried["line"]["reversescale"] is True
    assert tried["line"]["color"][0] == max(tried["line"]["color"]) > 0


def test_trials_that_failed_are_shown_with_their_status_and_error() -> None:
    problem, results, now = make_search()
    last = lines_of(table(problem, results, now))[-1]
    assert [last[0], *last[2:5]] == ["4", "0/3", "3", "out_of_memory"]
    assert last[-1] == "failed: out_of_memory on purpose"
    html = make_page(problem, results, now)
    row = html[html.index('<tr class="failed">') :]
    assert "<td>4</td>" in row
    assert "<td>failed: out_of_memory on purpose</td>" in row
    assert "trial 4, failed" in [trace["name"] for trace in traces(html, "curves")]


def test_a_finalist_whose_second_training_fails_is_marked() -> None:
    def make(run: TrialSegment) -> Result:
        return outcome(run, "not_finite" if run.again and run.trial == best else "ok")

    problem = make_problem()
    straight, _, _ = finish(problem)
    best = straight.finalists[0]
    now, results, _ = finish(problem, make=make)
    assert now.finalists == (*straight.finalists[1:], best)
    line = next(line for line in lines_of(table(problem, results, now)) if line[0] == str(best))
    assert line[5] == "not_finite"
    assert line[-1] == "finalist"
    now, results, _ = finish(problem, make=lambda run: outcome(run, "timed_out" if run.again else "ok"))
    assert now.winner is not None
    assert lines_of(table(problem, results, now))[0][-1] == "won"


def test_while_a_search_runs_its_page_reloads_and_no_trial_is_called_stopped() -> None:
    problem = make_problem()
    simulation = Simulation(problem, full_outcome)
    simulation.run(until=5)
    results, begun = simulation.results, [name for name in simulation.begun if name not in simulation.results]
    running = tuple(TrialSegment(trial=int(name[:4]), rung=int(name[5:]), params={}, until=3) for name in begun)
    assert running
    now = Standing(running)
    text, html = table(problem, results, now), make_page(problem, results, now)
    states = {int(line[0]): line[-1] for line in lines_of(text)}
    assert {number for number, state in states.items() if state == "running"} == {r.trial for r in now.running}
    assert "waits at rung 1" in states.values()
    assert "stopped" not in text
    assert text.endswith("sampling continues")
    assert '<meta http-equiv="refresh" content="15">' in html
    assert "<dd>sampling</dd>" in html
    over = make_page(*make_search())
    assert 'http-equiv="refresh"' not in over
    assert "over: trial" in over


def test_an_empty_search_has_a_page_without_figures() -> None:
    problem = make_problem()
    running = [TrialSegment(trial=i, rung=0, params={"learning_rate": 1e-4, "lora.rank": 8}, until=3) for i in range(3)]
    now = Standing(tuple(running))
    html = page(problem, {}, now, {}, title="greeter-1")
    assert "There are no results yet." in html
    assert "Plotly.newPlot" not in html
    assert html.count('<tr class="running">') == 3
    assert 'http-equiv="refresh"' in html
    nothing = Standing((), sampling=False)
    assert "There are no results yet." in page(problem, {}, nothing, {}, title="greeter-1")
    assert table(problem, {}, nothing).endswith(
        "0 trials, 0 segments, 0 tokens, 0 worker-seconds; sampling ended: nothing ran"
    )


def test_a_search_without_a_winner_has_a_page() -> None:
    problem = make_problem()
    now, results, _ = finish(problem, make=lambda run: outcome(run, "lost"))
    html = make_page(problem, results, now)
    assert "over: no trial won" in html
    assert html.count('<tr class="failed">') == 9
    assert "No run has taken a step yet." in html
    assert html.count("No trial has been measured yet.") == 2


def test_the_text_of_users_is_escaped() -> None:
    def make(run: TrialSegment) -> Result:
        failed = outcome(run, "failed").model_copy(update={"error": f"{EVIL}\x1b[2J\non another line"})
        return failed if run.trial == 2 else outcome(run)

    space = {"base_model": [f"org/{EVIL}", "org/a&b"], "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}
    problem = make_problem({"space": space, "algorithm": "grid"})
    now, results, _ = finish(problem, make=make)
    now = Standing(**{**vars(now), "why": EVIL})
    html = make_page(problem, results, now, title=EVIL)
    assert EVIL not in html
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>" in html
    assert "<h1>&lt;script&gt;" in html
    assert "<td>org/&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html
    assert "<td>failed: &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<dt>sampling ended</dt><dd>&lt;script&gt;" in html
    (tried,) = traces(html, "tried")
    assert tried["dimensions"][0]["ticktext"] == ["org/&lt;script&gt;alert(1)&lt;/script&gt;", "org/a&amp;b"]
    text = table(problem, results, now)
    assert len(text.splitlines()) == 12
    assert all(char.isprintable() or char == "\n" for char in text)


def test_the_page_is_self_contained_and_deterministic() -> None:
    search = make_search()
    html = make_page(*search)
    assert not re.search(r"""\bsrc\s*=\s*["']?(https?:)?//""", html)
    start = html.index("* plotly.js v")
    ours = html[:start] + html[html.index("</script>", start) :]
    assert "://" not in ours  # plotly.js contains addresses, and loads none of them for these figures
    assert not re.search(r"<(link|iframe|img|object|embed)\b|@import|\bsrc\b|url\(", ours)
    assert html.count("* plotly.js v") == 1
    assert len(re.findall(r"Plotly\.newPlot\(\s*\"", html)) == 4
    assert make_page(*search) == html


def test_stored_records_give_the_same_page() -> None:
    lists = {"lora.target_modules": [["q_proj", "v_proj"], "all-linear"], "learning_rate": [1e-4, 3e-4, 1e-3]}
    problem, results, now = make_search({"space": lists, "algorithm": "grid"})
    stored = Problem.model_validate(json.loads(json.dumps(problem.model_dump(mode="json"))))
    read = {
        name: Result.model_validate(json.loads(json.dumps(r.model_dump(mode="json")))) for name, r in results.items()
    }
    html = make_page(problem, results, now)
    assert make_page(stored, read, now) == html
    assert "<dd>6 of 6</dd>" in html  # a grid has as many trials as points
    assert '["q_proj", "v_proj"]' in table(problem, results, now)


def test_the_page_begins_with_the_costs_and_the_budgets() -> None:
    budget = {"hours": 4, "gpu_hours": 8, "money": 20, "price_per_hour": 2.5}
    problem, results, now = make_search({"budget": budget})
    html = make_page(problem, results, now)
    tokens = sum(result.tokens for result in results.values())
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert now.winner is not None
    assert facts == {
        "model": "greeter",
        "scheduler": "asha",
        "sampler": "tpe",
        "metric": "loss",
        "state": f"over: trial {now.winner.trial} won",
        "sampling ended": "every trial has run",
        "trials with a result": "9 of 9",
        "trials running": "0",
        "tokens trained": f"{tokens:,}",
        "hours": "0.50 of 4",
        "worker-hours": "1.50 of 8",
        "money": "3.75 of 20",
    }
    assert "<dt>money</dt>" not in make_page(*make_search())


def test_the_curves_have_every_trial_and_its_rungs_and_the_winner_stands_out() -> None:
    problem, results, now = make_search()
    assert now.winner is not None
    drawn = traces(make_page(problem, results, now), "curves")
    lines = {trace["name"]: trace for trace in drawn if trace["mode"] == "lines"}
    dots = {trace["name"]: trace for trace in drawn if trace["mode"] == "markers"}
    assert len(lines) == 9
    assert len(dots) == 8  # the failed one was never measured
    won = f"trial {now.winner.trial}, won"
    assert lines[won]["line"]["width"] > max(t["line"]["width"] for name, t in lines.items() if name != won)
    assert lines[won]["x"] == list(range(1, 28))
    assert lines[won]["y"] == [3.0 / step for step in range(1, 28)]
    assert dots[won]["x"] == [3, 9, 27]
    assert dots[won]["y"][-1] == results[f"{now.winner.trial:04d}-2"].loss


def test_a_long_curve_is_thinned_and_has_a_gap_where_a_loss_is_not_finite() -> None:
    def make(run: TrialSegment) -> Result:
        losses = [float(step % 2) for step in range(1001)]
        losses[500] = math.nan
        return outcome(run).model_copy(update={"losses": tuple(losses)})

    problem = make_problem({"algorithm": "random", "trials": 1, "finalists": 1})
    now, results, _ = finish(problem, make=make)
    line = next(t for t in traces(make_page(problem, results, now), "curves") if t["mode"] == "lines")
    assert len(line["x"]) == len(line["y"]) == 167
    assert line["x"][:2] == [6, 12]
    assert line["x"][-1] == 1001
    assert line["y"].count(None) == 1
    assert line["y"].count(0.5) >= 165


def test_the_coordinates_have_stopped_trials_too() -> None:
    problem, results, now = make_search()
    (tried,) = traces(make_page(problem, results, now), "tried")
    rate, rank, step, loss = tried["dimensions"]
    assert [axis["label"] for axis in tried["dimensions"]] == ["learning_rate", "lora.rank", "step", "loss"]
    assert sorted(set(step["values"])) == [3, 9, 27]
    assert len(loss["values"]) == 8  # all but the failed one
    assert tried["line"]["color"] == loss["values"]
    assert rate["range"] == [-5.0, -2.0]
    tried_rates = {result.run.params["learning_rate"] for result in results.values() if result.run.trial != 4}
    assert sorted(10**place for place in rate["values"]) == pytest.approx(sorted(tried_rates))
    assert rank["ticktext"] == ["8", "16"]
    assert set(rank["values"]) <= {0, 1}


def test_importance_comes_from_the_first_rung_or_a_sentence_says_why_not() -> None:
    problem, results, now = make_search({"trials": 16})
    (bars,) = traces(make_page(problem, results, now), "importance")
    assert bars["y"][-1] == "learning_rate"  # the loss depends on it most
    assert sum(bars["x"]) == pytest.approx(1.0)
    few = make_page(*make_search({"trials": 5}))
    assert "Importance needs 8 measured trials; there are 4." in few
    one = {"space": {"learning_rate": {"min": 1e-5, "max": 1e-2, "scale": "log"}, "lora.rank": [16]}}
    assert "Only learning_rate varies" in make_page(*make_search({**one, "trials": 16}))
    problem = make_problem()
    now, results, _ = finish(problem, make=lambda run: outcome(run).model_copy(update={"loss": 1.0}))
    assert "Every trial has the same value." in make_page(problem, results, now)


def test_the_cost_adds_up_in_the_order_of_the_results() -> None:
    problem, results, now = make_search()
    (cost,) = traces(make_page(problem, results, now), "cost")
    assert cost["x"] == sorted(cost["x"])
    assert cost["x"][0] == next(iter(results.values())).tokens
    assert cost["x"][-1] == sum(result.tokens for result in results.values())
    assert cost["y"] == sorted(cost["y"], reverse=True)
    assert cost["y"][-1] == min(r.loss for r in results.values() if r.loss is not None and not r.run.again)
    turned = make_page(problem, dict(reversed(results.items())), now)
    assert traces(turned, "cost")[0]["x"][0] != cost["x"][0]


@pytest.mark.parametrize(("gpus", "shared", "counted"), [(0, False, 3), (0, True, 3), (1, False, 3), (1, True, 1)])
def test_every_worker_counts_but_those_on_gpus_that_share_one(gpus: int, shared: bool, counted: int) -> None:
    problem, results, now = make_search()
    compute = problem.spec.compute.model_copy(update={"workers": 3, "gpus_per_worker": gpus})
    wide = problem.model_copy(update={"spec": problem.spec.model_copy(update={"compute": compute})})
    given = {name: result.model_copy(update={"shared": shared}) for name, result in results.items()}
    assert f" {2 * counted * len(results)} worker-seconds" in table(wide, given, now)
