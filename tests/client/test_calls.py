"""What one call does: options, deadlines, retries, errors. Against a fake that answers on demand."""

import asyncio
import gc
import inspect
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restormer_client import (
    AsyncEnhancer,
    DeadlineExceeded,
    EnhanceError,
    Enhancer,
    InvalidOption,
    InvalidPhotograph,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.testing import FakeTriton

from tests.conftest import free_port

PHOTO = b"a photograph"


def everything(kind):
    """A class and all below it."""
    return [kind, *(each for child in kind.__subclasses__() for each in everything(child))]


def test_options_travel_as_text_and_only_those_asked_for(fake, enhancer):
    enhancer.enhance(PHOTO, format="webp", quality=80, size=512, strength=0.25, gps="strip", tiled=True)
    enhancer.enhance(PHOTO)
    asked, plain = fake.requests
    assert asked.parameters == {"format": "webp", "quality": "80", "size": "512", "strength": "0.25", "gps": "strip"}
    assert (asked.model, plain.model) == ("enhance_tiled", "enhance")
    assert plain.parameters == {}


def test_the_deadline_reaches_the_queue(fake, enhancer):
    enhancer.enhance(PHOTO, timeout=7)
    enhancer.enhance(PHOTO)
    assert 6 < fake.requests[0].timeout <= 7
    assert 29 < fake.requests[1].timeout <= 30


def test_the_deadline_holds(fake, enhancer):
    fake.answers.append(DeadlineExceeded)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        enhancer.enhance(PHOTO, timeout=0.3)
    assert time.monotonic() - started < 5
    assert caught.value.model == "enhance"


def test_priorities(fake, enhancer):
    enhancer.enhance(PHOTO)
    enhancer.enhance(PHOTO, priority="bulk")
    list(enhancer.map([PHOTO]))
    assert [request.priority for request in fake.requests] == [1, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e13},
        {"priority": "high"},
    ],
)
def test_what_the_client_can_know_is_refused_before_anything_is_sent(fake, enhancer, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        enhancer.enhance(PHOTO, **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        enhancer.map([PHOTO], **wrong)
    assert not fake.requests


def test_headers_and_token_are_sent(fake):
    with Enhancer(fake.url, token="t", headers={"X-Key": "k"}) as enhancer:
        enhancer.enhance(PHOTO)
    assert fake.requests[0].headers["authorization"] == "Bearer t"
    assert fake.requests[0].headers["x-key"] == "k"


@pytest.mark.parametrize("size", [300_000, 6_000_000])
def test_a_broken_connection_is_tried_again_whatever_the_size(fake, enhancer, size):
    """gRPC's own retry gives up on requests larger than its buffer."""
    fake.answers.extend([ServerUnavailable, ServerUnavailable])
    photo = bytes(size)
    assert enhancer.enhance(photo) == photo
    assert len(fake.requests) == 3


def test_a_server_that_comes_back_is_found(fake, enhancer):
    enhancer.enhance(PHOTO)
    fake.stop()
    threading.Timer(1.0, fake.start).start()
    assert enhancer.enhance(PHOTO, timeout=30) == PHOTO


def test_retries_end_with_the_deadline():
    with Enhancer(f"127.0.0.1:{free_port()}") as nobody, pytest.raises(ServerUnavailable) as caught:
        nobody.enhance(PHOTO, timeout=1)
    assert caught.value.attempts > 1
    assert "is it running?" in str(caught.value)


def test_a_photograph_that_breaks_connections_is_not_sent_for_ever(fake, enhancer):
    fake.answers.extend([ServerUnavailable] * 10)
    with pytest.raises(ServerUnavailable) as caught:
        enhancer.enhance(PHOTO)
    assert caught.value.attempts == len(fake.requests) == 3


def test_a_model_without_versions_is_asked_for_again_and_then_told(fake, enhancer):
    """As while a server starts or stops: it passes, or the deadline does."""

    def away(request):
        raise ModelNotReady("has no available versions")

    fake.answers.extend([away, away])
    assert enhancer.enhance(PHOTO) == PHOTO
    fake.answers.extend([away] * 100)
    with pytest.raises(ModelNotReady, match="has no available versions") as caught:
        enhancer.enhance(PHOTO, timeout=1)
    assert caught.value.attempts > 1


@pytest.mark.parametrize("kind", [Overloaded, InvalidPhotograph, InvalidOption, ModelNotReady, ServerError])
def test_nothing_else_is_tried_again(fake, enhancer, kind):
    fake.answers.append(kind)
    with pytest.raises(kind) as caught:
        enhancer.enhance(PHOTO)
    assert type(caught.value) is kind
    assert caught.value.attempts == len(fake.requests) == 1


def test_a_full_queue_hints_when_to_come_back(fake, enhancer):
    fake.answers.extend([lambda request: time.sleep(0.2) or b"done", Overloaded])
    enhancer.enhance(PHOTO)
    with pytest.raises(Overloaded) as caught:
        enhancer.enhance(PHOTO)
    assert 0.2 <= caught.value.retry_after < 5
    fake.answers.append(Overloaded)
    with pytest.raises(Overloaded) as other:
        enhancer.enhance(PHOTO, tiled=True)  # a model of which nothing is known yet
    assert other.value.retry_after >= 1


def test_core_is_checked_against_the_servers_metadata(fake, enhancer):
    tensor = np.random.default_rng(0).random((2, 3, 512, 512), np.float32)
    answer = enhancer.core(tensor)
    assert np.array_equal(answer, tensor)
    assert answer.flags.writeable
    strided = tensor[:, ::-1]
    assert np.array_equal(enhancer.core(strided), strided)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((1, 3, 512, 512)), "float64"),
        (np.zeros((3, 512, 512), np.float32), r"\[3, 512, 512\]"),
        (np.zeros((0, 3, 512, 512), np.float32), r"\[0, 3, 512, 512\]"),
        (np.zeros((1, 3, 256, 512), np.float32), r"takes \[-1, 3, 512, 512\]"),
        ([1.0], "list"),
    ],
)
def test_a_tensor_the_model_does_not_take(enhancer, tensor, message):
    with pytest.raises(InvalidTensor, match=message):
        enhancer.core(tensor)


def test_health_and_readiness_name_what_is_missing(fake, enhancer):
    assert enhancer.health().ready
    enhancer.wait_until_ready(1)
    fake.missing = {"enhance", "postprocess"}
    assert enhancer.health().reason == "not ready: postprocess, enhance"
    with pytest.raises(ModelNotReady, match="'postprocess' is not ready after 3 s") as caught:
        enhancer.wait_until_ready(3)
    assert caught.value.model == "postprocess"


def test_health_of_a_dead_server_is_no_error():
    with Enhancer(f"127.0.0.1:{free_port()}") as nobody:
        health = nobody.health(timeout=2)
        assert not health.live
        assert "is it running?" in health.reason
        with pytest.raises(ServerUnavailable, match="not ready within"):
            nobody.wait_until_ready(1)


def test_metadata(enhancer):
    found = enhancer.metadata()
    assert found.name == "triton"
    assert found.models["restormer"]["input"] == ("FP32", (-1, 3, 512, 512))
    assert found.versions["restormer"] == ("1",)


def test_a_closed_client_says_so(fake):
    enhancer = Enhancer(fake.url)
    enhancer.enhance(PHOTO)
    enhancer.close()
    with pytest.raises(RuntimeError, match="was closed"):
        enhancer.enhance(PHOTO)


def test_closing_ends_what_is_under_way_with_a_word(fake, enhancer):
    arrived, release = threading.Event(), threading.Event()
    fake.answers.append(lambda request: (arrived.set(), release.wait(30), b"")[-1])
    caught = []

    def send():
        try:
            enhancer.enhance(PHOTO)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=send)
    thread.start()
    arrived.wait(30)
    enhancer.close()
    thread.join(30)
    release.set()
    assert caught == ["this Enhancer was closed"]


def test_closing_ends_awaited_calls_with_a_word_too(fake):
    release = threading.Event()
    fake.answers.append(lambda request: (release.wait(30), b"")[-1])

    async def closed():
        enhancer = AsyncEnhancer(fake.url)
        task = asyncio.create_task(enhancer.enhance(PHOTO))
        while not fake.requests:
            await asyncio.sleep(0.01)
        await enhancer.close()
        with pytest.raises(RuntimeError, match="was closed"):
            await task

    asyncio.run(closed())
    release.set()


def test_one_asynchronous_client_in_several_loops(fake):
    enhancer = AsyncEnhancer(fake.url)
    assert [asyncio.run(enhancer.enhance(PHOTO)) for _ in range(3)] == [PHOTO] * 3
    assert asyncio.run(pickle.loads(pickle.dumps(enhancer)).enhance(PHOTO)) == PHOTO


@pytest.mark.parametrize("kind", [kind for kind in everything(EnhanceError) if kind is not InvalidTensor])
def test_the_fake_says_what_it_is_told(fake, enhancer, kind):
    """Every error of the tree arrives as itself, with its words."""
    fake.answers.extend([kind("a word"), kind("a word"), kind("a word")])
    with pytest.raises(EnhanceError) as caught:
        enhancer.enhance(PHOTO, timeout=2)
    assert type(caught.value) is (ServerError if kind is EnhanceError else kind)
    assert "a word" in str(caught.value) or kind is DeadlineExceeded


def test_the_fakes_core_takes_answers_and_a_missing_model_is_missing(fake, enhancer):
    tensor = np.ones((1, 3, 512, 512), np.float32)
    fake.answers.extend([bytes(tensor.nbytes), InvalidTensor("no")])
    assert not enhancer.core(tensor).any()
    with pytest.raises(InvalidTensor, match="no"):
        enhancer.core(tensor)
    assert fake.requests[0].photo == tensor.tobytes()
    fake.missing = {"enhance"}
    with pytest.raises(ModelNotReady):
        enhancer.enhance(PHOTO)


def test_results_do_not_keep_photographs_alive(fake, enhancer):
    """An error's frames hold what was sent; a result may be kept for a report."""

    class Photo(bytearray):
        pass

    fake.answers.extend([InvalidPhotograph] * 4)
    alive, kept = [], []

    def photos():
        for _ in range(4):
            photo = Photo(b"x" * 1000)
            alive.append(weakref.ref(photo))
            yield photo

    gc.disable()
    try:
        for result in enhancer.map(photos(), max_in_flight=1):
            kept.append(result.error)
            del result
        assert [type(error) for error in kept] == [InvalidPhotograph] * 4
        assert [reference() for reference in alive] == [None] * 4
    finally:
        gc.enable()


def test_nothing_is_connected_before_the_first_call():
    enhancer = Enhancer("host.invalid:1")
    assert not enhancer._channels


def test_many_threads_on_one_client(fake, enhancer):
    together = threading.Barrier(50)
    found = []

    def send(number):
        together.wait()
        found.append(enhancer.enhance(b"%d" % number) == b"%d" % number)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 50
    assert len(enhancer._channels) == 1


def test_both_clients_have_the_same_methods_documented():
    for name in ("enhance", "core", "health", "wait_until_ready", "metadata"):
        ours, theirs = getattr(Enhancer, name), getattr(AsyncEnhancer, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert "Flow" not in str(inspect.signature(ours))
        assert ours.__doc__ == theirs.__doc__ != ""
        assert asyncio.iscoroutinefunction(theirs)
    public = {name for name in vars(Enhancer) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncEnhancer) if not name.startswith("_")}


KINDS = st.sampled_from([Overloaded, ServerUnavailable, InvalidPhotograph, ServerError, b"enhanced"])


@settings(deadline=None, max_examples=40)  # pauses between attempts take their time
@given(st.lists(KINDS, max_size=4))
def test_a_call_ends_as_the_first_answer_that_is_not_a_broken_connection(answers):
    with FakeTriton(*answers) as fake, Enhancer(fake.url) as enhancer:
        answers = answers[:3] if answers[:3] == [ServerUnavailable] * 3 else answers
        last = ServerUnavailable if len(answers) == 3 and set(answers) == {ServerUnavailable} else PHOTO
        decisive = next((answer for answer in answers if answer is not ServerUnavailable), last)
        try:
            outcome = enhancer.enhance(PHOTO)
        except EnhanceError as error:
            outcome = type(error)
        assert outcome == decisive
        sent = (
            3
            if decisive is ServerUnavailable
            else next((n for n, answer in enumerate(answers) if answer is not ServerUnavailable), len(answers)) + 1
        )
        assert len(fake.requests) == sent
