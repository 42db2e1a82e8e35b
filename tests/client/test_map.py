"""`map` of both clients: bounded concurrency, order of results, errors and cancellation."""

import asyncio
import contextlib
import itertools
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restormer_client import AsyncEnhancer, Enhancer, InvalidPhotograph, Overloaded
from restormer_client.testing import FakeTriton


def collect_results(url, asynchronous, photos, *, on_result=lambda result: None, **options):
    """Return all results of either client; call ``on_result`` with each as it comes."""
    results = []

    def keep(result):
        results.append(result)
        on_result(result)

    async def collect():
        async with AsyncEnhancer(url) as enhancer:
            async for result in enhancer.map(photos, **options):
                keep(result)

    if asynchronous:
        asyncio.run(collect())
    else:
        with Enhancer(url) as enhancer:
            for result in enhancer.map(photos, **options):
                keep(result)
    return results


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])


@pytest.fixture(scope="module")
def echo():
    with FakeTriton() as triton:
        yield triton


@both
@settings(deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=12), st.integers(1, 5), st.booleans())
def test_each_photograph_has_one_result(echo, asynchronous, photos, max_in_flight, ordered):
    results = collect_results(echo.url, asynchronous, photos, max_in_flight=max_in_flight, ordered=ordered)
    if ordered:
        assert [result.index for result in results] == list(range(len(photos)))
    assert sorted(result.index for result in results) == list(range(len(photos)))
    assert all(result.photo is photos[result.index] for result in results)
    assert all(result.unwrap() == result.photo for result in results)


@both
def test_error_is_in_the_result_of_its_photograph(fake, asynchronous, tmp_path):
    def answer(request):
        if request.photo == b"bad":
            raise InvalidPhotograph("not a photograph")
        return request.photo

    fake.answers.extend([answer] * 3)
    absent = tmp_path / "absent.jpg"
    results = collect_results(fake.url, asynchronous, [b"one", b"bad", absent, 5, b"two"], max_in_flight=2)
    assert [type(result.error).__name__ for result in results] == [
        "NoneType", "InvalidPhotograph", "FileNotFoundError", "TypeError", "NoneType",
    ]  # fmt: skip
    with pytest.raises(InvalidPhotograph):
        results[1].unwrap()


@both
def test_requests_in_flight_are_limited(fake, asynchronous):
    lock, in_flight, peak = threading.Lock(), 0, 0

    def answer(request):
        nonlocal in_flight, peak
        with lock:
            in_flight += 1
            peak = max(peak, in_flight)
        time.sleep(0.02)
        with lock:
            in_flight -= 1
        return request.photo

    fake.answers.extend([answer] * 30)
    collect_results(fake.url, asynchronous, [b"x"] * 30, max_in_flight=4)
    assert peak == 4


def test_infinite_source_is_consumed_as_requests_complete(echo):
    consumed = 0

    def photos():
        nonlocal consumed
        for number in itertools.count():
            consumed = number + 1
            yield b"%d" % number

    with Enhancer(echo.url) as enhancer, contextlib.closing(enhancer.map(photos(), max_in_flight=3)) as results:
        first = [next(results) for _ in range(20)]
    assert [result.enhanced for result in first] == [b"%d" % number for number in range(20)]
    assert consumed <= 20 + 2 * 3


def test_asynchronous_source(echo):
    async def source():
        for number in range(5):
            await asyncio.sleep(0)
            yield b"%d" % number

    results = collect_results(echo.url, True, source(), max_in_flight=2)
    assert [result.enhanced for result in results] == [b"0", b"1", b"2", b"3", b"4"]


@both
def test_unordered_results_do_not_wait_for_a_slow_head(fake, asynchronous):
    release = threading.Event()

    def answer(request):
        if request.photo == b"0":
            release.wait(25)
        return request.photo

    def release_first(result):
        if result.photo == b"5":
            release.set()

    fake.answers.extend([answer] * 6)
    photos = [b"%d" % number for number in range(6)]
    results = collect_results(fake.url, asynchronous, photos, on_result=release_first, max_in_flight=2, ordered=False)
    assert results[-1].photo == b"0"
    assert results[-1].enhanced == b"0"


@both
def test_leaving_the_loop_cancels_requests_in_flight(fake, asynchronous):
    release = threading.Event()
    fake.answers.extend([b"first", *[lambda request: release.wait(60) or b""] * 3])
    started = time.monotonic()
    if asynchronous:

        async def take_first():
            async with (
                AsyncEnhancer(fake.url) as enhancer,
                contextlib.aclosing(enhancer.map([b"x"] * 4, max_in_flight=4, ordered=False)) as results,
            ):
                return await anext(results)

        asyncio.run(take_first())
    else:
        with Enhancer(fake.url) as enhancer:
            results = enhancer.map([b"x"] * 4, max_in_flight=4, ordered=False)
            next(results)
            results.close()
    assert time.monotonic() - started < 30  # the timeout of the calls; the server holds them for a minute
    release.set()


@both
@pytest.mark.parametrize("invalid", [{"max_in_flight": 0}, {"sized": 1}, {"timeout": 0}])
def test_invalid_options_are_rejected_before_the_first_photograph(echo, asynchronous, invalid):
    client = (AsyncEnhancer if asynchronous else Enhancer)(echo.url)
    with pytest.raises((TypeError, ValueError)):
        client.map([b"x"], **invalid)


def test_overload_is_reported_and_not_retried(fake):
    fake.answers.append(Overloaded)
    (result,) = collect_results(fake.url, False, [b"x"])
    assert isinstance(result.error, Overloaded)
    assert len(fake.requests) == 1
