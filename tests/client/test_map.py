"""Many photographs: bounded, in order or as they are done, an error with its photograph; threads and asyncio alike."""

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


def mapped(url, asynchronous, photos, *, seen=lambda result: None, **options):
    """All results of either client; ``seen`` is called with each as it comes."""
    results = []

    def keep(result):
        results.append(result)
        seen(result)

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
    results = mapped(echo.url, asynchronous, photos, max_in_flight=max_in_flight, ordered=ordered)
    if ordered:
        assert [result.index for result in results] == list(range(len(photos)))
    assert sorted(result.index for result in results) == list(range(len(photos)))
    assert all(result.photo is photos[result.index] for result in results)
    assert all(result.unwrap() == result.photo for result in results)


@both
def test_an_error_belongs_to_its_photograph(fake, asynchronous, tmp_path):
    def answer(request):
        if request.photo == b"bad":
            raise InvalidPhotograph("no photograph")
        return request.photo

    fake.answers.extend([answer] * 3)
    absent = tmp_path / "absent.jpg"
    results = mapped(fake.url, asynchronous, [b"one", b"bad", absent, 5, b"two"], max_in_flight=2)
    assert [type(result.error).__name__ for result in results] == [
        "NoneType", "InvalidPhotograph", "FileNotFoundError", "TypeError", "NoneType",
    ]  # fmt: skip
    with pytest.raises(InvalidPhotograph):
        results[1].unwrap()


@both
def test_no_more_are_under_way_than_allowed(fake, asynchronous):
    lock, now, most = threading.Lock(), 0, 0

    def answer(request):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return request.photo

    fake.answers.extend([answer] * 30)
    mapped(fake.url, asynchronous, [b"x"] * 30, max_in_flight=4)
    assert most == 4


def test_an_endless_source_is_read_as_places_become_free(echo):
    read = 0

    def endless():
        nonlocal read
        for number in itertools.count():
            read = number + 1
            yield b"%d" % number

    with Enhancer(echo.url) as enhancer, contextlib.closing(enhancer.map(endless(), max_in_flight=3)) as results:
        first = [next(results) for _ in range(20)]
    assert [result.enhanced for result in first] == [b"%d" % number for number in range(20)]
    assert read <= 20 + 2 * 3


def test_an_asynchronous_source(echo):
    async def source():
        for number in range(5):
            await asyncio.sleep(0)
            yield b"%d" % number

    results = mapped(echo.url, True, source(), max_in_flight=2)
    assert [result.enhanced for result in results] == [b"0", b"1", b"2", b"3", b"4"]


@both
def test_unordered_results_do_not_wait_for_a_slow_head(fake, asynchronous):
    release = threading.Event()

    def slow(request):
        if request.photo == b"0":
            release.wait(25)
        return request.photo

    def seen(result):
        if result.photo == b"5":
            release.set()

    fake.answers.extend([slow] * 6)
    photos = [b"%d" % number for number in range(6)]
    results = mapped(fake.url, asynchronous, photos, seen=seen, max_in_flight=2, ordered=False)
    assert results[-1].photo == b"0"
    assert results[-1].enhanced == b"0"


@both
def test_leaving_the_loop_cancels_what_is_under_way(fake, asynchronous):
    stuck = threading.Event()
    fake.answers.extend([b"first", *[lambda request: stuck.wait(60) or b""] * 3])
    started = time.monotonic()
    if asynchronous:

        async def first():
            async with (
                AsyncEnhancer(fake.url) as enhancer,
                contextlib.aclosing(enhancer.map([b"x"] * 4, max_in_flight=4, ordered=False)) as results,
            ):
                return await anext(results)

        asyncio.run(first())
    else:
        with Enhancer(fake.url) as enhancer:
            results = enhancer.map([b"x"] * 4, max_in_flight=4, ordered=False)
            next(results)
            results.close()
    assert time.monotonic() - started < 30  # their own deadline, and the server's patience is a minute
    stuck.set()


@both
@pytest.mark.parametrize("wrong", [{"max_in_flight": 0}, {"sized": 1}, {"timeout": 0}])
def test_what_is_wrong_with_all_is_said_once_and_first(echo, asynchronous, wrong):
    client = (AsyncEnhancer if asynchronous else Enhancer)(echo.url)
    with pytest.raises((TypeError, ValueError)):
        client.map([b"x"], **wrong)


def test_a_full_queue_is_not_hidden(fake):
    fake.answers.append(Overloaded)
    (result,) = mapped(fake.url, False, [b"x"])
    assert isinstance(result.error, Overloaded)
    assert len(fake.requests) == 1
